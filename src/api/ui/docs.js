'use strict';
// Starts Swagger UI on our own description, with the key that the dashboard keeps for this tab.
(async () => {
  const key = sessionStorage.getItem('vigia-key');
  const headers = key ? { authorization: 'Bearer ' + key } : {};
  const answer = await fetch('/openapi.json', { headers });
  if (!answer.ok) return;
  const ui = SwaggerUIBundle({
    spec: await answer.json(), dom_id: '#docs', deepLinking: true, docExpansion: 'list', defaultModelsExpandDepth: 0,
    validatorUrl: null, presets: [SwaggerUIBundle.presets.apis], layout: 'BaseLayout',
    onComplete: () => { if (key) ui.preauthorizeApiKey('key', key); },
  });
})();

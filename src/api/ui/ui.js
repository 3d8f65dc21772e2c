'use strict';
const TEXTS = {
  es: {
    skip: 'Ir al contenido',
    api: 'API',
    keyTitle: 'Hace falta una clave',
    keyWhy: 'Este equipo pide una clave. Se crea con «vigia keys add NOMBRE» y aquí solo se guarda hasta cerrar la pestaña.',
    keyLabel: 'Clave',
    keyGo: 'Entrar',
    keyWrong: 'Esa clave no vale.',
    problems: 'Algo no está como se pidió',
    live: 'En directo',
    silence: 'Nadie habla todavía. Lo que se diga aparecerá aquí.',
    tasks: 'Tareas',
    machine: 'Equipo',
    sessions: 'Sesiones recientes',
    noSessions: 'Aún no hay ninguna.',
    events: 'Eventos',
    close: 'Cerrar',
    ok: 'Todo bien',
    degraded: 'Con problemas',
    unreachable: 'Sin respuesta',
    connected: 'Conectado',
    connecting: 'Conectando…',
    ready: 'lista',
    cold: 'en espera',
    loading: 'cargando',
    unavailable: 'no disponible',
    off: 'apagada',
    mqttOff: 'apagado',
    failed: 'falla',
    noGpu: 'ninguna',
    vad: 'Detectar voz',
    transcribe: 'Transcribir',
    diarize: 'Distinguir hablantes',
    describe: 'Describir escenas',
    chat: 'Analizar conversaciones',
    speak: 'Hablar',
    paint: 'Dibujar',
    read: 'Leer textos',
    detect: 'Detectar objetos',
    profile: 'Perfil',
    processor: 'Procesador',
    cores: 'núcleos',
    memory: 'Memoria',
    ofDaemon: 'el propio Vigía',
    gpu: 'GPU',
    waiting: 'Trabajos en cola',
    liveSessions: 'Sesiones abiertas',
    mqtt: 'MQTT',
    uptime: 'Encendido hace',
    open: 'abierta',
    transcript: 'Texto',
    empty: 'Sin texto.',
    speaking: 'hablando…',
  },
  en: {
    skip: 'Skip to content',
    api: 'API',
    keyTitle: 'A key is needed',
    keyWhy: 'This box asks for a key. Make one with “vigia keys add NAME”; it is kept here only until the tab is closed.',
    keyLabel: 'Key',
    keyGo: 'Enter',
    keyWrong: 'That key is not valid.',
    problems: 'Something is not as it was asked for',
    live: 'Live',
    silence: 'Nobody is speaking yet. What is said will appear here.',
    tasks: 'Tasks',
    machine: 'Machine',
    sessions: 'Recent sessions',
    noSessions: 'There are none yet.',
    events: 'Events',
    close: 'Close',
    ok: 'All well',
    degraded: 'With problems',
    unreachable: 'No answer',
    connected: 'Connected',
    connecting: 'Connecting…',
    ready: 'ready',
    cold: 'waiting',
    loading: 'loading',
    unavailable: 'unavailable',
    off: 'off',
    mqttOff: 'off',
    failed: 'failing',
    noGpu: 'none',
    vad: 'Detect voice',
    transcribe: 'Transcribe',
    diarize: 'Tell speakers apart',
    describe: 'Describe scenes',
    chat: 'Analyse conversations',
    speak: 'Speak',
    paint: 'Draw',
    read: 'Read texts',
    detect: 'Detect objects',
    profile: 'Profile',
    processor: 'Processor',
    cores: 'cores',
    memory: 'Memory',
    ofDaemon: 'Vigía itself',
    gpu: 'GPU',
    waiting: 'Jobs waiting',
    liveSessions: 'Open sessions',
    mqtt: 'MQTT',
    uptime: 'Up for',
    open: 'open',
    transcript: 'Text',
    empty: 'No text.',
    speaking: 'speaking…',
  },
};
const LANGUAGE = (navigator.language || 'es').toLowerCase().startsWith('es') ? 'es' : 'en';
const t = (key) => TEXTS[LANGUAGE][key] || key;
const $ = (id) => document.getElementById(id);
// In the order in which data meets them.
const TASKS = ['vad', 'transcribe', 'diarize', 'describe', 'detect', 'read', 'chat', 'speak', 'paint'];
const MAX_WORDS = 60;
const MAX_EVENTS = 200;
const HEALTH_MS = 5000;

// Text only ever enters the page through here, as text.
function el(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child != null));
  return node;
}
function pill(node, kind, text) {
  node.className = 'pill ' + kind;
  if (node.textContent !== text) node.textContent = text;
  return node;
}

document.documentElement.lang = LANGUAGE;
for (const node of document.querySelectorAll('[data-t]')) node.textContent = t(node.dataset.t);

let key = sessionStorage.getItem('vigia-key') || '';
async function ask(path) {
  const answer = await fetch(path, { headers: key ? { authorization: 'Bearer ' + key } : {}, cache: 'no-store' });
  if (answer.status === 401) { askForKey(); throw new Error('401'); }
  if (!answer.ok) throw new Error(String(answer.status));
  return answer;
}
function askForKey() {
  if (!$('key').hidden) return;
  $('keyWrong').textContent = key ? t('keyWrong') : '';
  $('key').hidden = false;
  $('main').classList.add('locked');
  pill($('status'), '', '');
  $('keyInput').focus();
}
$('key').addEventListener('submit', (event) => {
  event.preventDefault();
  key = $('keyInput').value.trim();
  sessionStorage.setItem('vigia-key', key);
  $('keyInput').value = '';
  $('key').hidden = true;
  $('main').classList.remove('locked');
  refresh();
  connect();
});

function ago(secs) {
  const parts = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']];
  const [size, unit] = parts.find(([size]) => secs >= size) || parts[3];
  return Math.floor(secs / size) + ' ' + unit;
}
function clock(at) {
  const date = new Date(at);
  return isNaN(date) ? '' : date.toLocaleTimeString(LANGUAGE, { hour: '2-digit', minute: '2-digit', second: '2-digit' });
}

function showHealth(health) {
  pill($('status'), health.status === 'ok' ? 'good' : 'warn', t(health.status));
  $('node').textContent = [health.node, health.version].filter(Boolean).join(' · ');
  $('problems').hidden = health.problems.length === 0;
  $('problemList').replaceChildren(...health.problems.map((problem) => el('li', { textContent: problem })));
  $('tasks').replaceChildren(...TASKS.filter((name) => health.tasks[name]).map((name) => {
    const task = health.tasks[name];
    const state = task.state === 'unavailable' && !task.model ? 'off' : task.state;
    const kind = { ready: 'good', unavailable: 'bad', loading: 'warn' }[state] || '';
    const about = [task.model, task.variant, task.provider].filter(Boolean).join(' · ');
    const why = state === 'unavailable' ? task.reason : '';
    return el('li', {},
      el('div', { className: 'what' }, t(name), about ? el('small', { textContent: about }) : null, why ? el('small', { textContent: why }) : null),
      pill(el('span'), kind, t(state)));
  }));
  const machine = health.hardware;
  const gpu = machine.gpu_vram_gb ? machine.gpu_model + ' · ' + machine.gpu_vram_gb + ' GB' : t('noGpu');
  const used = health.memory.daemon ? ' · ' + Math.round(health.memory.daemon / 1048576) + ' MiB ' + t('ofDaemon') : '';
  const queues = health.queues.live + health.queues.interactive + health.queues.batch;
  const facts = [
    ['profile', machine.profile], ['processor', [machine.cpu_model, machine.cpu_cores + ' ' + t('cores')].filter(Boolean).join(' · ')],
    ['memory', machine.ram_gb + ' GB' + used], ['gpu', gpu], ['liveSessions', health.sessions], ['waiting', queues],
    ['mqtt', t(health.mqtt.state === 'off' ? 'mqttOff' : health.mqtt.state)], ['uptime', ago(health.uptime_secs)],
  ];
  $('machine').replaceChildren(...facts.flatMap(([name, value]) => [el('dt', { textContent: t(name) }), el('dd', { textContent: value })]));
}

function showSessions(list) {
  $('noSessions').hidden = list.length > 0;
  $('sessions').replaceChildren(...list.map((session) => {
    const when = new Date(session.opened_at).toLocaleString(LANGUAGE, { dateStyle: 'medium', timeStyle: 'short' });
    const about = [session.device, session.state === 'open' ? t('open') : ago(session.duration)].join(' · ');
    const button = el('button', { className: 'quiet', textContent: t('transcript'), onclick: () => read(session) });
    button.setAttribute('aria-label', t('transcript') + ', ' + when);
    return el('li', {}, el('div', { className: 'what' }, when, el('small', { textContent: about })), button);
  }));
}

async function read(session) {
  const path = '/sessions/' + encodeURIComponent(session.session_id) + '/transcript.';
  const { segments } = await (await ask(path + 'json')).json();
  const lines = segments.filter((segment) => segment.text.trim()).map((segment) =>
    el('p', {}, segment.speaker ? el('strong', { textContent: segment.speaker + ': ' }) : null, segment.text));
  $('h-reader').textContent = session.device;
  $('readerText').replaceChildren(...(lines.length ? lines : [el('p', { className: 'muted', textContent: t('empty') })]));
  $('readerFiles').replaceChildren(...['txt', 'srt', 'vtt', 'json'].map((format) =>
    el('button', { className: 'quiet', textContent: '.' + format, onclick: () => save(path + format, session.session_id + '.' + format) })));
  $('reader').showModal();
}
async function save(path, name) {
  const link = el('a', { href: URL.createObjectURL(await (await ask(path)).blob()), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
$('readerClose').addEventListener('click', () => $('reader').close());

let asking = false;
async function refresh() {
  if (asking || document.hidden || !$('key').hidden) return;
  asking = true;
  try {
    showHealth(await (await ask('/api/health')).json());
    showSessions((await (await ask('/sessions?limit=8')).json()).sessions);
  } catch {
    if ($('key').hidden) pill($('status'), 'bad', t('unreachable'));
  } finally {
    asking = false;
  }
}

// What is being said now, one line for each session that speaks.
const speaking = new Map();
function line(session, kind, text, about) {
  const node = el('li', { className: kind }, about ? el('small', { textContent: about }) : null, text);
  const words = $('words');
  const atEnd = words.scrollTop + words.clientHeight >= words.scrollHeight - 40;
  if (speaking.has(session)) { speaking.get(session).replaceWith(node); speaking.delete(session); } else words.append(node);
  if (kind === 'now') speaking.set(session, node);
  while (words.children.length > MAX_WORDS) words.firstChild.remove();
  if (atEnd) words.scrollTop = words.scrollHeight;
  $('silence').hidden = true;
}
function hear(event) {
  const { type, device, session, data } = event;
  const segment = data.segment && typeof data.segment === 'object' ? data.segment : data;
  const about = [clock(event.ts_at), device].filter(Boolean).join(' · ');
  if (type === 'speech' && data.state === 'start') line(session, 'now', t('speaking'), about);
  else if (type === 'transcript.partial') line(session, 'now', data.text || '…', about);
  else if (type === 'transcript.segment' && segment.text) line(session, '', segment.text, [about, segment.speaker].filter(Boolean).join(' · '));
  else if (type === 'hazard') line('hazard ' + event.id, 'danger', data.what || data.text || '', about);
  else if (type === 'scene') line('scene ' + event.id, '', data.description || '', about);
  else if (type === 'session.end' && speaking.has(session)) { speaking.get(session).remove(); speaking.delete(session); }
  if (type !== 'transcript.partial') {
    $('events').prepend(el('li', {}, el('time', { textContent: clock(event.ts_at) }), el('b', { textContent: type }), el('span', { textContent: JSON.stringify(data) })));
    while ($('events').children.length > MAX_EVENTS) $('events').lastChild.remove();
  }
  if (type === 'session.start' || type === 'session.end') refresh();
}

let socket = null;
let pause = 1000;
function connect() {
  if (socket || !$('key').hidden) return;
  pill($('link'), 'warn', t('connecting'));
  const url = new URL('/ws/events' + (key ? '?token=' + encodeURIComponent(key) : ''), location.href);
  url.protocol = url.protocol.replace('http', 'ws');
  socket = new WebSocket(url);
  socket.onopen = () => { pause = 1000; pill($('link'), 'good', t('connected')); };
  socket.onmessage = (message) => hear(JSON.parse(message.data));
  socket.onclose = () => {
    socket = null;
    pill($('link'), 'warn', t('connecting'));
    setTimeout(connect, pause);
    pause = Math.min(pause * 2, 30000);
  };
}

setInterval(refresh, HEALTH_MS);
document.addEventListener('visibilitychange', refresh);
refresh().then(connect);

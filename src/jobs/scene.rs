//! A photo becomes a scene: what is to be seen, what may be dangerous, what could be done. One question to a describer;
//! whatever it says, a scene comes of it.

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    base::Result,
    engines::{Describe, DescribeAsk, Sampling},
    flow::{Image, Priority},
    jobs::{
        Answer, Ask, Queue,
        structured::{answered, list, object_in, text},
    },
};

/// Somebody listens to it, or reads it on a small display.
const MAX_TOKENS: u32 = 700;
const MAX_TEXT_CHARS: usize = 4000;
const MAX_ITEMS: usize = 20;
const SEVERITIES: [&str; 3] = ["low", "medium", "high"];

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scene {
    pub description: String,
    /// None: the describer keeps to no form, and only described. So for `suggestions`.
    pub hazards: Option<Vec<Hazard>>,
    pub suggestions: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Hazard {
    pub what: String,
    pub why: String,
    /// `low`, `medium` or `high`.
    pub severity: &'static str,
}

/// A photo that is being looked at. Dropping it ends that.
pub struct Looking {
    queue: Queue,
    ask: DescribeAsk,
    answer: Answer<Describe>,
}

impl Looking {
    /// Asks, or says that too much is asked already. `prompt`: what the person wants to know; else what is to be seen.
    pub fn begin(queue: &Queue, image: Image, prompt: Option<&str>, language: &str) -> Result<Looking> {
        let ask = ask(image, prompt, language);
        let answer = queue.submit(Priority::Interactive, Ask::new(ask.clone()))?;
        Ok(Looking { queue: queue.clone(), ask, answer })
    }

    pub async fn scene(self) -> Result<Scene> {
        let Looking { queue, ask, answer } = self;
        let plain = || DescribeAsk { schema: None, ..ask };
        let said = answered::<Describe>(&queue, Priority::Interactive, answer, plain).await?;
        Ok(read(&said.text))
    }
}

fn ask(image: Image, prompt: Option<&str>, language: &str) -> DescribeAsk {
    let system = format!(
        "You are the eyes of a person who wears camera glasses. Answer in the language with the code `{language}`, in \
         short plain sentences, and say only what is in the picture. Answer with a JSON object: `description` (what is \
         to be seen, or the answer to the question), `hazards` (what may hurt the person now: `what`, `why`, `severity` \
         low, medium or high; empty if there is none), `suggestions` (what the person could do)."
    );
    DescribeAsk {
        images: vec![image],
        prompt: prompt.unwrap_or("What is to be seen here?").to_owned(),
        system: Some(system),
        sampling: Sampling { temperature: 0.2, top_p: 0.9, max_tokens: MAX_TOKENS, ..Sampling::default() },
        schema: Some(schema().to_string()),
    }
}

fn schema() -> Value {
    let hazard = json!({
        "type": "object",
        "properties": {
            "what": {"type": "string"},
            "why": {"type": "string"},
            "severity": {"type": "string", "enum": SEVERITIES},
        },
        "required": ["what", "why", "severity"],
        "additionalProperties": false,
    });
    json!({
        "type": "object",
        "properties": {
            "description": {"type": "string"},
            "hazards": {"type": "array", "items": hazard},
            "suggestions": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["description", "hazards", "suggestions"],
        "additionalProperties": false,
    })
}

fn read(said: &str) -> Scene {
    let Some(object) = object_in(said).filter(|object| object["description"].is_string()) else {
        let description = said.trim().chars().take(MAX_TEXT_CHARS).collect();
        return Scene { description, hazards: None, suggestions: None };
    };
    let hazard = |it: &Value| {
        let [what, why] = ["what", "why"].map(|key| text(it, key, MAX_TEXT_CHARS));
        // What a model calls otherwise is not taken lightly.
        let severity = SEVERITIES.into_iter().find(|it_is| it["severity"] == *it_is).unwrap_or("medium");
        (!what.is_empty()).then_some(Hazard { what, why, severity })
    };
    let suggestion = |it: &Value| it.as_str().map(|it| it.trim().chars().take(MAX_TEXT_CHARS).collect());
    Scene {
        description: text(&object, "description", MAX_TEXT_CHARS),
        hazards: Some(list(&object, "hazards", MAX_ITEMS, hazard)),
        suggestions: Some(list(&object, "suggestions", MAX_ITEMS, suggestion)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_said_a_scene_comes_of_it() {
        let said = r#"```json
            {"description": " Una escalera. ", "suggestions": ["Agárrate.", 3],
             "hazards": [{"what": "escalón", "why": "roto", "severity": "HIGH"}, {"why": "?"}, "x",
                         {"what": "agua", "why": "resbala", "severity": "low"}]}
        ```"#;
        let scene = read(said);
        assert_eq!(scene.description, "Una escalera.");
        let hazards = scene.hazards.unwrap();
        let told: Vec<_> = hazards.iter().map(|it| (it.what.as_str(), it.severity)).collect();
        assert_eq!(told, [("escalón", "medium"), ("agua", "low")]);
        assert_eq!(scene.suggestions.unwrap(), ["Agárrate."]);
        for said in ["Una escalera.", "{\"hazards\": []}", "{\"description\": 7}", ""] {
            let scene = read(said);
            assert_eq!((scene.description.as_str(), scene.hazards, scene.suggestions), (said, None, None));
        }
    }
}

//! Answers in a form: asked for with a schema where the engine keeps to one, and read leniently where it does not. What a
//! model says is never trusted to be what it was asked for.

use serde_json::Value;

use crate::{
    base::{Kind, Result},
    engines::Hireable,
    flow::Priority,
    jobs::{Answer, Ask, Queue},
};

/// The answer to a question with a schema; asked again as `plain` where the engine knows no schemas.
pub(super) async fn answered<E: Hireable>(
    queue: &Queue,
    priority: Priority,
    answer: Answer<E>,
    plain: impl FnOnce() -> E::Ask,
) -> Result<E::Answer> {
    match answer.await {
        Err(error) if error.kind() == Kind::Unsupported => {
            log::debug!("asked again without a schema: {}", error.full());
            queue.submit_patiently(priority, Ask::<E>::new(plain())).await?.await
        }
        answered => answered,
    }
}

/// The object in what a model says, whatever it says around it.
pub(super) fn object_in(text: &str) -> Option<Value> {
    let whole = text.get(text.find('{')?..=text.rfind('}')?)?;
    serde_json::from_str::<Value>(whole).ok().filter(Value::is_object)
}

/// A text of the object: trimmed, and no longer than that.
pub(super) fn text(value: &Value, key: &str, longest: usize) -> String {
    let text = value.get(key).and_then(Value::as_str).unwrap_or_default().trim();
    text.chars().take(longest).collect()
}

/// What is in a list of the object, as far as it can be read.
pub(super) fn list<T>(value: &Value, key: &str, most: usize, read: impl FnMut(&Value) -> Option<T>) -> Vec<T> {
    let items = value.get(key).and_then(Value::as_array);
    items.into_iter().flatten().filter_map(read).take(most).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_is_found_in_whatever_is_said_around_it() {
        for said in ["{\"a\": 1}", "```json\n{\"a\": 1}\n```", "Sure! {\"a\": 1} Anything else?"] {
            assert_eq!(object_in(said), Some(json!({"a": 1})), "{said}");
        }
        for said in ["", "no", "}{", "{\"a\": ", "[1]", "{a: 1}", "¿{? ñ}"] {
            assert_eq!(object_in(said), None, "{said}");
        }
    }

    #[test]
    fn fields_are_read_as_far_as_they_can_be() {
        let value = json!({"t": "  añb ", "n": 7, "l": ["a", 3, {"x": 1}, "b", "c"]});
        assert_eq!(
            (text(&value, "t", 2), text(&value, "n", 9), text(&value, "none", 9)),
            ("añ".into(), "".into(), "".into())
        );
        let words = list(&value, "l", 2, |it| it.as_str().map(str::to_owned));
        assert_eq!(words, ["a", "b"]);
        assert!(list(&value, "t", 2, |it| it.as_str().map(str::to_owned)).is_empty());
    }
}

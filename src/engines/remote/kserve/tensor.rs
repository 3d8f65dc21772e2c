//! Tensors on the wire: as JSON, or as bytes behind it (the binary data extension). Reads both; believes no size.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::engines::remote::{
    link::{Answer, Content, Request},
    trouble::Trouble,
};

/// Tells where the JSON ends and the bytes begin.
const JSON_LENGTH: &str = "Inference-Header-Content-Length";

#[derive(Clone, Copy)]
pub(super) enum Data<'a> {
    Text(&'a str),
    F32(&'a [f32]),
    U8(&'a [u8]),
}

pub(super) struct Input<'a> {
    pub(super) name: &'a str,
    pub(super) shape: Vec<usize>,
    pub(super) data: Data<'a>,
}

impl Data<'_> {
    pub(super) fn datatype(&self) -> &'static str {
        match self {
            Data::Text(_) => "BYTES",
            Data::F32(_) => "FP32",
            Data::U8(_) => "UINT8",
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Data::Text(_) => 1,
            Data::F32(values) => values.len(),
            Data::U8(values) => values.len(),
        }
    }

    fn json(&self) -> Value {
        match self {
            Data::Text(text) => json!([text]),
            Data::F32(values) => json!(values),
            Data::U8(values) => json!(values),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Data::Text(text) => [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat(),
            Data::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Data::U8(values) => values.to_vec(),
        }
    }
}

/// Asks for one output. Texts are few bytes and stay in the JSON, where people can read them.
pub(super) fn request<'a>(
    path: &'a str,
    inputs: &[Input<'_>],
    parameters: Value,
    output: &str,
    binary: bool,
) -> Request<'a> {
    let mut behind = Vec::new();
    let mut described = Vec::new();
    for Input { name, shape, data } in inputs {
        let mut input = json!({"name": name, "shape": shape, "datatype": data.datatype()});
        if binary && !matches!(data, Data::Text(_)) {
            let bytes = data.bytes();
            input["parameters"] = json!({"binary_data_size": bytes.len()});
            behind.extend(bytes);
        } else {
            input["data"] = data.json();
        }
        described.push(input);
    }
    let output = json!({"name": output, "parameters": {"binary_data": binary}});
    let body = json!({"inputs": described, "outputs": [output], "parameters": parameters});
    let mut bytes = body.to_string().into_bytes();
    let (kind, headers) = match behind.is_empty() {
        true => ("application/json", Vec::new()),
        false => ("application/octet-stream", vec![(JSON_LENGTH, bytes.len().to_string())]),
    };
    bytes.extend(behind);
    Request { path, body: Some(Content { kind: kind.to_owned(), bytes, headers }) }
}

/// One output as it came.
pub(super) struct Output {
    pub(super) datatype: String,
    pub(super) content: Inside,
}

pub(super) enum Inside {
    Json(Value),
    Bytes(Vec<u8>),
}

#[derive(Deserialize)]
struct Inferred {
    outputs: Vec<WireOutput>,
}

#[derive(Deserialize)]
struct WireOutput {
    name: String,
    datatype: String,
    data: Option<Value>,
    parameters: Option<WireParameters>,
}

#[derive(Deserialize)]
struct WireParameters {
    binary_data_size: Option<usize>,
}

/// The output of that name.
pub(super) fn output(answer: &mut Answer<'_>, name: &str) -> Result<Output, Trouble> {
    let json_length = match answer.header(JSON_LENGTH).map(|text| text.trim().parse::<usize>()) {
        Some(Ok(length)) => Some(length),
        Some(Err(_)) => return Err(broken(answer)),
        None => None,
    };
    if json_length.is_none() && !answer.kind().is_empty() && !answer.kind().ends_with("json") {
        return Err(answer.wrong_kind("JSON"));
    }
    let bytes = answer.bytes()?;
    let (json, mut behind) =
        bytes.split_at_checked(json_length.unwrap_or(bytes.len())).ok_or_else(|| broken(answer))?;
    let inferred: Inferred = serde_json::from_slice(json).map_err(|error| answer.not_json(error))?;
    for output in inferred.outputs {
        let content = match output.parameters.and_then(|it| it.binary_data_size) {
            Some(size) => {
                let (own, rest) = behind.split_at_checked(size).ok_or_else(|| broken(answer))?;
                behind = rest;
                Inside::Bytes(own.to_vec())
            }
            None => Inside::Json(output.data.unwrap_or_default()),
        };
        if output.name == name {
            return Ok(Output { datatype: output.datatype, content });
        }
    }
    Err(Trouble::lasting(answer.server.strange(&format!("answers without the tensor {name}"))))
}

fn broken(answer: &Answer<'_>) -> Trouble {
    Trouble::lasting(answer.server.strange("answers with tensors of other sizes than it says"))
}

impl Output {
    /// The first text.
    pub(super) fn text(&self) -> Option<String> {
        match &self.content {
            _ if self.datatype != "BYTES" => None,
            Inside::Json(value) => first(value)?.as_str().map(str::to_owned),
            Inside::Bytes(bytes) => {
                let (length, rest) = bytes.split_at_checked(4)?;
                let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
                Some(std::str::from_utf8(rest.get(..length)?).ok()?.to_owned())
            }
        }
    }

    /// Sound in ±1.
    pub(super) fn samples(&self) -> Option<Vec<f32>> {
        let wide = match self.datatype.as_str() {
            "FP32" => false,
            "INT16" => true,
            _ => return None,
        };
        let samples: Vec<f32> = match &self.content {
            Inside::Json(value) => {
                let mut numbers = Vec::new();
                collect(value, &mut numbers)?;
                numbers.into_iter().map(|it| if wide { it / 32768.0 } else { it } as f32).collect()
            }
            Inside::Bytes(bytes) if wide && bytes.len().is_multiple_of(2) => {
                bytes.chunks_exact(2).map(|it| f32::from(i16::from_le_bytes([it[0], it[1]])) / 32768.0).collect()
            }
            Inside::Bytes(bytes) if !wide && bytes.len().is_multiple_of(4) => {
                bytes.chunks_exact(4).map(|it| f32::from_le_bytes([it[0], it[1], it[2], it[3]])).collect()
            }
            Inside::Bytes(_) => return None,
        };
        Some(samples.into_iter().map(|it| if it.is_finite() { it.clamp(-1.0, 1.0) } else { 0.0 }).collect())
    }
}

/// Tensors in JSON are flat or nested, as the server likes.
fn first(value: &Value) -> Option<&Value> {
    match value {
        Value::Array(items) => first(items.first()?),
        value => Some(value),
    }
}

fn collect(value: &Value, numbers: &mut Vec<f64>) -> Option<()> {
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| collect(item, numbers)),
        value => {
            numbers.push(value.as_f64()?);
            Some(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(datatype: &str, content: Inside) -> Output {
        Output { datatype: datatype.to_owned(), content }
    }

    #[test]
    fn texts_are_read_from_both_forms_and_from_nothing_else() {
        assert_eq!(output("BYTES", Inside::Json(json!([["hola"]]))).text().as_deref(), Some("hola"));
        assert_eq!(output("BYTES", Inside::Bytes(Data::Text("hola").bytes())).text().as_deref(), Some("hola"));
        for content in [Inside::Json(json!([])), Inside::Json(json!([3])), Inside::Bytes(vec![9, 0, 0, 0, b'a'])] {
            assert_eq!(output("BYTES", content).text(), None);
        }
        assert_eq!(output("FP32", Inside::Json(json!(["hola"]))).text(), None);
        assert_eq!(output("BYTES", Inside::Bytes(vec![255; 3])).text(), None);
    }

    #[test]
    fn sound_is_read_from_both_forms_and_types() {
        assert_eq!(output("FP32", Inside::Json(json!([[0.5, -2.0]]))).samples(), Some(vec![0.5, -1.0]));
        assert_eq!(output("INT16", Inside::Json(json!([16384]))).samples(), Some(vec![0.5]));
        let bytes = Data::F32(&[0.25, f32::NAN]).bytes();
        assert_eq!(output("FP32", Inside::Bytes(bytes)).samples(), Some(vec![0.25, 0.0]));
        assert_eq!(output("INT16", Inside::Bytes(vec![0, 64])).samples(), Some(vec![0.5]));
        assert_eq!(output("INT16", Inside::Bytes(vec![0])).samples(), None);
        assert_eq!(output("FP64", Inside::Json(json!([0.5]))).samples(), None);
        assert_eq!(output("FP32", Inside::Json(json!(["a"]))).samples(), None);
    }

    #[test]
    fn large_tensors_stand_behind_the_json() {
        let inputs = [
            Input { name: "AUDIO", shape: vec![1, 2], data: Data::F32(&[0.5, 1.0]) },
            Input { name: "TEXT", shape: vec![1], data: Data::Text("a") },
        ];
        let content = request("/x", &inputs, json!({}), "OUT", true).body.unwrap();
        let length: usize = content.headers[0].1.parse().unwrap();
        assert_eq!(content.bytes.len(), length + 8);
        let json: Value = serde_json::from_slice(&content.bytes[..length]).unwrap();
        assert_eq!(json["inputs"][0]["parameters"]["binary_data_size"], 8);
        assert_eq!(json["inputs"][1]["data"], json!(["a"]));
        assert_eq!(content.kind, "application/octet-stream");

        let content = request("/x", &inputs, json!({}), "OUT", false).body.unwrap();
        let json: Value = serde_json::from_slice(&content.bytes).unwrap();
        assert_eq!(json["inputs"][0]["data"], json!([0.5, 1.0]));
        assert_eq!(json["outputs"][0]["parameters"]["binary_data"], false);
        assert!(content.headers.is_empty());
    }
}

//! Bodies of requests, read within limits: their size, the time between their parts, and the memory that all of
//! them together may take. A body over a limit is answered, not read on.

use std::{
    cmp::min,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::stream::try_unfold;
use http_body_util::BodyExt as _;
use hyper::{
    body::{Body as _, Incoming},
    header,
};
use multer::{Constraints, Field, Multipart, SizeLimit};
use serde::de::DeserializeOwned;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use crate::{
    api::{Context, call::Call, error::Refusal},
    base::{ByteSize, Error, Kind},
};

/// A client slower than this on average is given up; the worst mobile line is faster.
const SLOWEST_BYTES_PER_SEC: u64 = 1024;

/// Texts beside the file in a form.
const MAX_FIELD_BYTES: u64 = 64 << 10;
const MAX_FIELDS: usize = 32;

/// What the part `file` of a form becomes.
pub(crate) trait FilePart: Send + Sized {
    fn read(part: Field<'_>, context: &Arc<Context>) -> impl Future<Output = Result<Self, Refusal>> + Send;

    fn is_empty(&self) -> bool;
}

impl FilePart for Bytes {
    async fn read(part: Field<'_>, _: &Arc<Context>) -> Result<Bytes, Refusal> {
        part.bytes().await.map_err(refusal)
    }

    fn is_empty(&self) -> bool {
        Bytes::is_empty(self)
    }
}

/// A multipart form: one file at most, and texts.
pub(crate) struct Form<F = Bytes> {
    pub(crate) file: Option<F>,
    fields: Vec<(String, String)>,
}

impl<F: FilePart> Form<F> {
    /// Empty is absent.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(it, _)| it == name);
        found.map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
    }

    pub(crate) fn flag(&self, name: &str) -> Result<bool, Error> {
        match self.get(name).map(str::to_ascii_lowercase).as_deref() {
            None | Some("false" | "0" | "no") => Ok(false),
            Some("true" | "1" | "yes") => Ok(true),
            Some(other) => Err(Error::invalid(format!("{name} must be true or false, not `{other}`"))),
        }
    }

    pub(crate) fn take_file(&mut self) -> Result<F, Error> {
        match self.file.take() {
            Some(file) if !file.is_empty() => Ok(file),
            Some(_) => Err(Error::invalid("the part `file` is empty")),
            None => Err(Error::invalid("the form has no part named `file`").hint("for example: curl -F file=@NAME …")),
        }
    }
}

pub(crate) async fn json<T: DeserializeOwned>(call: &mut Call) -> Result<T, Refusal> {
    parsed(&bytes(call).await?)
}

/// As `json`; an empty body asks for nothing in particular.
pub(crate) async fn json_if_any<T: DeserializeOwned + Default>(call: &mut Call) -> Result<T, Refusal> {
    let bytes = bytes(call).await?;
    if bytes.is_empty() { Ok(T::default()) } else { parsed(&bytes) }
}

fn parsed<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|error| {
        Error::invalid(format!("the body is not the JSON expected here: {error}")).hint("GET /docs describes it").into()
    })
}

/// A form whose file is held in memory.
pub(crate) async fn form(call: &mut Call) -> Result<Form, Refusal> {
    let intake = Intake::new(call)?;
    read_form(call, intake).await
}

/// A form whose file is too large for that, and goes where its type says.
pub(crate) async fn large_form<F: FilePart>(call: &mut Call) -> Result<Form<F>, Refusal> {
    let intake = Intake::large(call)?;
    read_form(call, intake).await
}

async fn read_form<F: FilePart>(call: &Call, intake: Intake) -> Result<Form<F>, Refusal> {
    let content_type = call.header(header::CONTENT_TYPE).unwrap_or_default();
    let boundary = multer::parse_boundary(content_type).map_err(|_| {
        Error::new(Kind::Unsupported, "this takes multipart/form-data with a part named `file`")
            .hint("for example: curl -F file=@NAME …")
    })?;
    let constraints =
        Constraints::new().size_limit(SizeLimit::new().per_field(MAX_FIELD_BYTES).for_field("file", intake.limit));
    let parts =
        try_unfold(
            intake,
            |mut intake| async move { Ok::<_, Refusal>(intake.next().await?.map(|part| (part, intake))) },
        );
    let mut multipart = Multipart::with_constraints(parts, boundary, constraints);
    let mut form = Form { file: None, fields: Vec::new() };
    while let Some(field) = multipart.next_field().await.map_err(refusal)? {
        let name = field.name().unwrap_or_default().to_owned();
        if name == "file" {
            if form.file.is_some() {
                return Err(Error::invalid("the form has more than one part named `file`").into());
            }
            form.file = Some(F::read(field, call.context()).await?);
        } else if form.fields.len() == MAX_FIELDS {
            return Err(Error::invalid(format!("the form has more than {MAX_FIELDS} fields")).into());
        } else {
            form.fields.push((name, field.text().await.map_err(refusal)?));
        }
    }
    Ok(form)
}

async fn bytes(call: &mut Call) -> Result<Bytes, Refusal> {
    let mut intake = Intake::new(call)?;
    let mut all = BytesMut::new();
    while let Some(part) = intake.next().await? {
        all.extend_from_slice(&part);
    }
    Ok(all.freeze())
}

/// What the multipart parser says, as what we say.
pub(crate) fn refusal(error: multer::Error) -> Refusal {
    match error {
        multer::Error::StreamReadFailed(inner) => match inner.downcast::<Refusal>() {
            Ok(refusal) => *refusal,
            Err(error) => Error::invalid("the body of the request broke off").cause(error).into(),
        },
        multer::Error::FieldSizeExceeded { limit, field_name } => {
            let name = field_name.unwrap_or_default();
            Error::new(Kind::TooLarge, format!("the part `{name}` is larger than {}", ByteSize(limit))).into()
        }
        error => Error::invalid(format!("the form is not well-formed: {error}")).into(),
    }
}

/// The parts of a body as they come.
struct Intake {
    body: Incoming,
    limit: u64,
    /// The setting that says so.
    limited_by: &'static str,
    received: u64,
    started: Instant,
    timeout: Duration,
    /// Where the body stays in memory.
    memory: Option<Arc<BodyMemory>>,
}

impl Intake {
    fn new(call: &mut Call) -> Result<Intake, Refusal> {
        let (limit, memory) = (call.context().settings.server.max_body, Arc::clone(&call.body_memory));
        Intake::begin(call, limit, "server.max_body", Some(memory))
    }

    fn large(call: &mut Call) -> Result<Intake, Refusal> {
        let limit = call.context().settings.server.max_upload;
        Intake::begin(call, limit, "server.max_upload", None)
    }

    fn begin(
        call: &mut Call,
        limit: ByteSize,
        limited_by: &'static str,
        memory: Option<Arc<BodyMemory>>,
    ) -> Result<Intake, Refusal> {
        let timeout = call.context().settings.server.request_timeout();
        let body = call.body.take().ok_or_else(|| Error::internal("the body was read already"))?;
        let intake =
            Intake { body, limit: limit.get(), limited_by, received: 0, started: Instant::now(), timeout, memory };
        if intake.body.size_hint().lower() > intake.limit { Err(intake.too_large()) } else { Ok(intake) }
    }

    fn too_large(&self) -> Refusal {
        Error::new(Kind::TooLarge, format!("the body is larger than {}", ByteSize(self.limit)))
            .hint(format!("send a smaller one, or raise {}", self.limited_by))
            .into()
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        loop {
            let paced = self.started + self.timeout + Duration::from_secs(self.received / SLOWEST_BYTES_PER_SEC);
            let deadline = min(paced, Instant::now() + self.timeout);
            let Ok(frame) = timeout_at(deadline, self.body.frame()).await else { return Err(Refusal::slow_body()) };
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|error| Error::invalid("the body of the request broke off").cause(error))?;
            // Trailers say nothing to us.
            let Ok(part) = frame.into_data() else { continue };
            self.received += part.len() as u64;
            if self.received > self.limit {
                return Err(self.too_large());
            }
            if let Some(memory) = &self.memory {
                memory.grow_to(self.received)?;
            }
            return Ok(Some(part));
        }
    }
}

/// The share of one request in the memory that all bodies together may take. Dropping it gives the share back.
pub(crate) struct BodyMemory {
    all_kib: Arc<Semaphore>,
    held_kib: AtomicU32,
}

impl BodyMemory {
    pub(crate) fn new(all_kib: Arc<Semaphore>) -> BodyMemory {
        BodyMemory { all_kib, held_kib: AtomicU32::new(0) }
    }

    fn grow_to(&self, bytes: u64) -> Result<(), Error> {
        let wanted = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let more = wanted.saturating_sub(self.held_kib.load(Relaxed));
        let permit = self.all_kib.try_acquire_many(more).map_err(|_| {
            Error::new(Kind::Busy, "too many large requests at a time").hint("send it again in a few seconds")
        })?;
        permit.forget();
        self.held_kib.fetch_add(more, Relaxed);
        Ok(())
    }
}

impl Drop for BodyMemory {
    fn drop(&mut self) {
        self.all_kib.add_permits(self.held_kib.load(Relaxed) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_for_bodies_is_shared_and_given_back() {
        let all = Arc::new(Semaphore::new(10));
        let (one, two) = (BodyMemory::new(Arc::clone(&all)), BodyMemory::new(Arc::clone(&all)));
        one.grow_to(6 * 1024).unwrap();
        two.grow_to(1).unwrap();
        assert_eq!(two.grow_to(5 * 1024).unwrap_err().kind(), Kind::Busy);
        drop(one);
        two.grow_to(5 * 1024).unwrap();
        drop(two);
        assert_eq!(all.available_permits(), 10);
    }

    #[test]
    fn flags_of_forms_are_read_as_people_write_them() {
        let form: Form = Form { file: None, fields: vec![("a".into(), "TRUE".into()), ("b".into(), "perhaps".into())] };
        assert!(form.flag("a").unwrap());
        assert!(!form.flag("absent").unwrap());
        assert!(form.flag("b").is_err());
    }
}

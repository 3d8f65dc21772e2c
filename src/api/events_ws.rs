//! `/ws/events`: what the hub publishes, filtered, to whoever listens. First what was, where `from` asks for it, then
//! what is: without a gap and without doubles. A listener that is too slow is closed, never waited for.

use std::{borrow::Cow, collections::HashSet, convert::Infallible, sync::Arc};

use serde::Deserialize;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::{
    api::{
        Context,
        call::{Call, Query},
        error::Reply,
        ws::{self, Close, Gone, Socket},
    },
    base::{Error, Result},
    flow::{Event, EventType, SessionId},
    publish::Published,
    telemetry::{emit, events::ClientTooSlow},
};

/// Events read from the journal at a time: few enough to lie in memory for many listeners.
const PAGE: usize = 200;

const STOPPING: &str = "the daemon is stopping";

/// Live events (WebSocket)
///
/// The server sends one envelope for each event, as text in JSON; what a client sends is ignored. Give `from` to get
/// what was before as well. A client that reads too slowly is closed with 1013 and may come back with `from`; where
/// keys are needed, give one as `?token=KEY` or as a header.
#[utoipa::path(get, path = "/ws/events", tag = "streams",
    params(
        ("types" = Option<String>, Query, description = "Only these, with commas between", example = "transcript.segment,hazard"),
        ("session" = Option<String>, Query, description = "Only this session"),
        ("device" = Option<String>, Query, description = "Only this device"),
        ("from" = Option<u64>, Query, description = "Begin with what was, from this `seq` of a session on", example = 1),
        ("token" = Option<String>, Query, description = "A key, for clients that cannot set headers"),
    ),
    responses((status = 101, description = "The WebSocket is open; each message is an event", body = Event)),
)]
pub(crate) async fn open(mut call: Call) -> Reply {
    let wanted = Wanted::parse(&call.query())?;
    let (response, socket) = ws::upgrade(&mut call)?;
    let (context, route) = (Arc::clone(call.context()), call.route);
    tokio::spawn(async move {
        let _busy = context.shutdown.busy(route);
        match socket.await {
            Ok(socket) => serve(&context, socket, &wanted, route).await,
            Err(error) => log::debug!("{route}: {}", error.full()),
        }
    });
    Ok(response)
}

/// What a listener wants to hear.
struct Wanted {
    types: Option<HashSet<EventType>>,
    session: Option<SessionId>,
    device: Option<String>,
    from: Option<u64>,
}

/// The part of a journaled envelope that filters look at.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(rename = "type")]
    kind: EventType,
    seq: u64,
    #[serde(borrow)]
    device: Cow<'a, str>,
    session: Option<SessionId>,
}

impl Wanted {
    fn parse(query: &Query) -> Result<Wanted> {
        let types = query.get("types").map(parse_types).transpose()?;
        let device = query.get("device").map(str::to_owned);
        Ok(Wanted { types, session: query.session("session")?, device, from: query.number("from")? })
    }

    fn matches(&self, kind: EventType, session: Option<&SessionId>, device: &str) -> bool {
        self.types.as_ref().is_none_or(|types| types.contains(&kind))
            && self.session.as_ref().is_none_or(|wanted| session == Some(wanted))
            && self.device.as_ref().is_none_or(|wanted| device == wanted)
    }

    fn matches_live(&self, event: &Event) -> bool {
        self.matches(event.kind, event.session.as_ref(), &event.device)
    }
}

fn parse_types(text: &str) -> Result<HashSet<EventType>> {
    let parse = |name: &str| {
        EventType::from_name(name).ok_or_else(|| {
            let known: Vec<&str> = EventType::ALL.iter().map(|kind| kind.name()).collect();
            Error::invalid(format!("there is no event type `{name}`")).hint(format!("known: {}", known.join(", ")))
        })
    };
    text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(parse).collect()
}

/// How serving ended, and what the client is told of it.
struct Ending(Close, &'static str);

async fn serve(context: &Context, mut socket: Socket, wanted: &Wanted, route: &'static str) {
    let Err(Ending(close, reason)) = tokio::select! {
        served = listen(context, &mut socket, wanted, route) => served,
        () = context.shutdown.wait() => Err(Ending(Close::GoingAway, STOPPING)),
    };
    socket.close(close, reason).await;
}

/// Only ever returns an ending.
async fn listen(
    context: &Context,
    socket: &mut Socket,
    wanted: &Wanted,
    route: &'static str,
) -> Result<Infallible, Ending> {
    let mut past = wanted.from.map(Past::new);
    loop {
        // 1. Subscribed before the journal is read, so that nothing falls between the two.
        let mut live = context.hub.subscribe();
        if let Some(past) = &mut past {
            past.replay(context, socket, wanted).await?;
        }
        // 2. What came meanwhile waits in `live`. If that was more than it holds, the journal has it by now.
        let position = past.as_ref().map_or(0, |past| past.position);
        let lagged = follow(socket, wanted, &mut live, position).await?;
        if past.is_none() || matches!(lagged, Lagged::Later) {
            emit(ClientTooSlow { route });
            return Err(Ending(Close::TryLater, "you read too slowly; connect again with from="));
        }
    }
}

enum Lagged {
    /// Nothing live has been sent yet.
    BeforeTheFirst,
    Later,
}

/// Live events after `position`, until the client leaves or is too far behind.
async fn follow(
    socket: &mut Socket,
    wanted: &Wanted,
    live: &mut Receiver<Arc<Published>>,
    position: i64,
) -> Result<Lagged, Ending> {
    let mut first = true;
    loop {
        let published = tokio::select! {
            published = live.recv() => published,
            heard = socket.next() => match heard {
                Ok(_) => continue,
                Err(gone) => return Err(gone.into()),
            },
        };
        match published {
            Ok(published) if published.position > position => {
                first = false;
                if wanted.matches_live(&published.event) {
                    socket.send(&*published.json).await?;
                }
            }
            Ok(_) => (),
            Err(RecvError::Lagged(_)) if first => return Ok(Lagged::BeforeTheFirst),
            Err(RecvError::Lagged(_)) => return Ok(Lagged::Later),
            Err(RecvError::Closed) => return Err(Ending(Close::GoingAway, STOPPING)),
        }
    }
}

/// How far the journal has been replayed.
struct Past {
    /// The next `seq` wanted.
    from: u64,
    position: i64,
}

impl Past {
    fn new(from: u64) -> Past {
        Past { from, position: 0 }
    }

    async fn replay(&mut self, context: &Context, socket: &mut Socket, wanted: &Wanted) -> Result<(), Ending> {
        context.store.flush().await?;
        loop {
            let rows = match &wanted.session {
                Some(session) => context.store.events(session, self.from, PAGE).await?,
                None => context.store.events_after(self.position, PAGE).await?,
            };
            let Some((last, _)) = rows.last() else { return Ok(()) };
            self.position = *last;
            for (_, json) in &rows {
                let head: Head<'_> = serde_json::from_str(json)
                    .map_err(|error| Error::internal("a journaled event cannot be read").cause(error))?;
                if head.seq >= self.from && wanted.matches(head.kind, head.session.as_ref(), &head.device) {
                    socket.send(&**json).await?;
                }
                if wanted.session.is_some() {
                    self.from = head.seq + 1;
                }
            }
        }
    }
}

impl From<Gone> for Ending {
    fn from(gone: Gone) -> Ending {
        Ending(gone.close(), gone.reason())
    }
}

impl From<Error> for Ending {
    fn from(error: Error) -> Ending {
        log::error!("replaying events: {}", error.full());
        Ending(Close::Internal, "the journal cannot be read")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_and_unknown_types_named() {
        let wanted = Wanted::parse(&Query::parse("types=hazard,%20scene&device=gafas&from=3")).unwrap();
        assert!(wanted.matches(EventType::Hazard, None, "gafas"));
        assert!(!wanted.matches(EventType::Speech, None, "gafas"));
        assert!(!wanted.matches(EventType::Hazard, None, "other"));
        assert_eq!(wanted.from, Some(3));
        let error = Wanted::parse(&Query::parse("types=hazards")).err().unwrap();
        assert!(error.hint_text().unwrap().contains("hazard, "));
        assert!(Wanted::parse(&Query::parse("from=-1")).is_err());
        assert!(Wanted::parse(&Query::parse("session=a%20b")).is_err());
    }
}

//! Speaks with one client of the broker: lets it in, carries packets between it and the router, publishes its will
//! when it goes without a goodbye.
//!
//! A client's id belongs to one link at a time, and a link tells the router that it leaves before the next one
//! joins: the router finds clients by number and uses numbers again.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use rumqttd::{
    Notification,
    local::{LinkRx, LinkTx},
    protocol::{
        ConnAck, ConnAckProperties, ConnectReturnCode, Disconnect, DisconnectReasonCode, LastWill, Packet, Publish,
    },
};
use sha2::{Digest, Sha256};
use tokio::{
    net::TcpStream,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{
    House,
    guard::{self, Guard},
    line::{Line, Version},
};
use crate::{
    base::{Error, Kind, Result},
    publish::MAX_PACKET_BYTES,
};

/// From the connection to the CONNECT packet.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A wrong password is answered late, so that guessing is slow.
const REFUSAL_DELAY: Duration = Duration::from_millis(500);
/// Packets of one write to a client, and the bytes after which no further one is added: a slow client has to take a
/// write within a limit, and what it does not take stays shared in the router.
const BATCH: usize = 100;
const BATCH_BYTES: usize = 256 << 10;
const MAX_CLIENT_ID: usize = 256;

/// What a CONNECT packet asked for.
struct Guest {
    client_id: String,
    assigned: bool,
    clean: bool,
    /// Silence after which it is taken for gone; `None`: never.
    patience: Option<Duration>,
    will: Option<LastWill>,
}

pub(super) async fn serve(stream: TcpStream, house: &House, stop: &CancellationToken) -> Result<()> {
    let arrival = async {
        let mut line = Line::open(stream).await?;
        let guest = receive(&mut line, house).await?;
        Ok::<_, Error>((line, guest))
    };
    let (mut line, guest) = tokio::select! {
        arrived = time::timeout(CONNECT_LIMIT, arrival) => {
            arrived.map_err(|_| Error::new(Kind::Timeout, "it did not introduce itself"))??
        }
        () = stop.cancelled() => return Ok(()),
    };
    let name = guard::router_name(&guest.client_id);
    let sitting = house.sit(&name).await;
    let (mut to_router, mut from_router, welcome) = match house.join(&name, guest.clean) {
        Ok(joined) => joined,
        Err(error) => {
            refuse(&mut line, Refusal::Unavailable).await?;
            return Err(Error::unavailable("the router does not take it").cause(error));
        }
    };
    log::debug!("MQTT client `{}` connected ({:?})", guest.client_id, line.version());
    // Whatever happens, the router hears that the client is gone: a place in it that is not given back is lost.
    let conversation = AssertUnwindSafe(async {
        let mut guard = Guard::default();
        forward(&mut line, &guest, &mut guard, Some(welcome), &mut from_router).await?;
        converse(&mut line, &guest, &mut guard, &mut to_router, &mut from_router).await
    });
    let conversation = conversation.catch_unwind().map(|ended| ended.unwrap_or_else(|_| Err(panicked())));
    let ended = tokio::select! {
        ended = conversation => ended,
        () = sitting.seat.leave.cancelled() => Err(Error::new(Kind::Cancelled, "another client came with its id")),
        () = stop.cancelled() => Err(Error::new(Kind::Cancelled, "the broker stops")),
    };
    let will = if ended.is_ok() { None } else { guest.will };
    if let Some(will) = will {
        // As QoS 0 towards the router: it would acknowledge to nobody, and subscribers get it as they asked.
        let publish = Publish::new(will.topic, will.message, will.retain);
        send(&mut to_router, Packet::Publish(publish, None)).await?;
    }
    let goodbye = Disconnect { reason_code: DisconnectReasonCode::NormalDisconnection };
    send(&mut to_router, Packet::Disconnect(goodbye, None)).await?;
    drop(sitting);
    ended
}

fn panicked() -> Error {
    Error::internal("speaking with it panicked")
}

/// Reads and checks the CONNECT packet.
async fn receive(line: &mut Line, house: &House) -> Result<Guest> {
    let packet = loop {
        match line.packet()? {
            Some(packet) => break packet,
            None => line.fill().await?,
        }
    };
    let Packet::Connect(connect, properties, will, _, login) = packet else {
        return Err(Error::invalid("it does not begin with CONNECT"));
    };
    let given = login.as_ref().map(|login| (login.username.as_str(), login.password.as_str()));
    let expected = house.login.as_ref().map(|login| (login.username.as_str(), login.password.as_str()));
    if expected.is_some_and(|expected| !given.is_some_and(|given| same(given, expected))) {
        time::sleep(REFUSAL_DELAY).await;
        refuse(line, Refusal::Login).await?;
        return Err(Error::new(Kind::Unauthorized, "its user or password is wrong"));
    }
    // MQTT 5 says with a time of its own whether the session outlives the connection.
    let kept = line.version() == Version::V4
        || properties.as_ref().and_then(|it| it.session_expiry_interval).is_some_and(|secs| secs > 0);
    let clean = connect.clean_session || !kept;
    let assigned = connect.client_id.is_empty();
    if connect.client_id.len() > MAX_CLIENT_ID || (assigned && !clean) {
        refuse(line, Refusal::ClientId).await?;
        return Err(Error::invalid("its client id is too long, or empty for a session that is to be kept"));
    }
    will.as_ref().map_or(Ok(()), guard::check_will)?;
    let patience = (connect.keep_alive > 0).then(|| Duration::from_secs(connect.keep_alive.into()).mul_f32(1.5));
    let client_id = if assigned { format!("vigia-{}", ulid::Ulid::new()) } else { connect.client_id };
    Ok(Guest { client_id, assigned, clean, patience, will })
}

/// Until either side ends it; `Ok` is a goodbye, after which there is no will.
async fn converse(
    line: &mut Line,
    guest: &Guest,
    guard: &mut Guard,
    to_router: &mut LinkTx,
    from_router: &mut LinkRx,
) -> Result<()> {
    let mut heard = Instant::now();
    loop {
        // What came with the last bytes, before waiting for more.
        while let Some(mut packet) = line.packet()? {
            guard.check(&mut packet)?;
            if let Packet::Disconnect(goodbye, _) = &packet {
                return match goodbye.reason_code {
                    DisconnectReasonCode::DisconnectWithWillMessage => {
                        Err(Error::new(Kind::Cancelled, "it asked for its will"))
                    }
                    _ => Ok(()),
                };
            }
            send(to_router, packet).await?;
        }
        let patience = guest.patience;
        tokio::select! {
            filled = line.fill() => {
                filled?;
                heard = Instant::now();
            }
            notice = from_router.next() => {
                let notice = notice.map_err(|error| Error::internal("the router closed it").cause(error))?;
                forward(line, guest, guard, notice, from_router).await?;
            }
            () = async { time::sleep_until(heard + patience.unwrap_or_default()).await }, if patience.is_some() => {
                return Err(Error::new(Kind::Timeout, "it fell silent"));
            }
        }
    }
}

/// Sends what the router has for the client, as much as is there, in one write.
async fn forward(
    line: &mut Line,
    guest: &Guest,
    guard: &mut Guard,
    first: Option<Notification>,
    from_router: &mut LinkRx,
) -> Result<()> {
    let mut next = first;
    let mut taken = 0;
    let mut was_full = false;
    while let Some(notice) = next {
        was_full |= matches!(notice, Notification::Unschedule);
        match notice.into() {
            Some(Packet::ConnAck(ack, properties)) => line.put(welcome(guest, ack, properties))?,
            Some(packet) => {
                guard.sends(&packet);
                line.put(packet)?;
            }
            None => (),
        }
        taken += 1;
        let room = taken < BATCH && line.packed() < BATCH_BYTES;
        let more = if room { from_router.next().now_or_never() } else { None };
        next = more.and_then(|it| it.ok().flatten());
    }
    line.flush().await?;
    if was_full {
        // The router waits after filling our buffer until it hears that we have emptied it.
        from_router.wake().await.map_err(|error| Error::internal("the router is gone").cause(error))?;
    }
    Ok(())
}

fn welcome(guest: &Guest, ack: ConnAck, properties: Option<ConnAckProperties>) -> Packet {
    let properties = ConnAckProperties {
        assigned_client_identifier: guest.assigned.then(|| guest.client_id.clone()),
        max_packet_size: u32::try_from(MAX_PACKET_BYTES).ok(),
        shared_subscription_available: Some(0),
        topic_alias_max: None,
        ..properties.unwrap_or_default()
    };
    Packet::ConnAck(ack, Some(properties))
}

enum Refusal {
    Login,
    ClientId,
    Unavailable,
}

async fn refuse(line: &mut Line, refusal: Refusal) -> Result<()> {
    let code = match (refusal, line.version()) {
        (Refusal::Login, _) => ConnectReturnCode::BadUserNamePassword,
        (Refusal::ClientId, _) => ConnectReturnCode::ClientIdentifierNotValid,
        (Refusal::Unavailable, Version::V4) => ConnectReturnCode::ServiceUnavailable,
        (Refusal::Unavailable, Version::V5) => ConnectReturnCode::ServerUnavailable,
    };
    line.put(Packet::ConnAck(ConnAck { session_present: false, code }, None))?;
    line.flush().await
}

/// Waits, on the broker's own thread, while the router's queue of 1000 is full.
async fn send(to_router: &mut LinkTx, packet: Packet) -> Result<()> {
    to_router.send(packet).await.map(drop).map_err(|error| Error::internal("the router is gone").cause(error))
}

/// Compares digests, so that the time it takes says nothing about the password.
fn same(given: (&str, &str), expected: (&str, &str)) -> bool {
    let digest = |(user, password): (&str, &str)| {
        Sha256::new().chain_update(user).chain_update([0]).chain_update(password).finalize()
    };
    digest(given) == digest(expected)
}

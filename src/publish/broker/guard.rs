//! Keeps from rumqttd's router what would bring it down for everybody, and turns what it answers with a closed
//! connection although clients do it all the time.
//!
//! 0.20's router panics on a topic whose first character is not ASCII (it slices one byte off) and may panic on a
//! persistent shared subscription; it closes the connection of whoever subscribes to `$SYS/#`, as MQTT Explorer
//! does; it does not check filters; it keeps `+` and `#` in topics. It forgets a client that breaks the rules without
//! telling its link, and panics on what the link says next: so the rules are kept here, and the link leaves first.

use std::collections::VecDeque;

use bytes::Bytes;
use rumqttd::protocol::{LastWill, Packet, Publish, PublishProperties, has_wildcards, valid_filter};

use crate::base::{Error, Kind, Result};

/// Nobody publishes below this: `$SYS/#` is granted and stays silent.
const SILENT: &str = "_silent/";
/// A client's own limit of filters in one packet.
const MAX_FILTERS: usize = 256;
/// The router remembers topics and filters for as long as it runs; those in use are a tenth of this.
const MAX_TOPIC_BYTES: usize = 1024;
/// What the router may hold of a client's messages of QoS 2 before it releases them; mosquitto's clients have 20 under
/// way. Each takes more than its bytes.
const MAX_HELD_BYTES: usize = 4 << 20;
const HELD_EXTRA_BYTES: usize = 400;

/// Knows what one client may acknowledge and release.
#[derive(Default)]
pub(super) struct Guard {
    /// Messages that the client has to acknowledge, in this order.
    unacked: VecDeque<u16>,
    /// Those of QoS 2 that it has to complete.
    uncompleted: VecDeque<u16>,
    /// The client's own messages of QoS 2 that it has not released: what each takes in the router.
    held: VecDeque<usize>,
}

impl Guard {
    /// Before a packet of the client goes to the router.
    pub(super) fn check(&mut self, packet: &mut Packet) -> Result<()> {
        match packet {
            Packet::Publish(publish, properties) => {
                check_topic(&publish.topic)?;
                properties.as_ref().map_or(Ok(()), check_properties)?;
                if guarantee(publish).0 == 2 { self.hold(publish) } else { Ok(()) }
            }
            Packet::PubAck(ack, _) => expect(&mut self.unacked, ack.pkid),
            Packet::PubRec(received, _) => expect(&mut self.unacked, received.pkid),
            Packet::PubComp(complete, _) => expect(&mut self.uncompleted, complete.pkid),
            Packet::PubRel(_, properties) => {
                // The router passes over a release that has any.
                *properties = None;
                let released = self.held.pop_front();
                released.map(drop).ok_or_else(|| Error::invalid("it releases a message that it has not sent"))
            }
            Packet::Subscribe(subscribe, properties) => {
                if subscribe.filters.is_empty() || subscribe.filters.len() > MAX_FILTERS {
                    return Err(Error::invalid(format!(
                        "it subscribes to none or more than {MAX_FILTERS} filters at once"
                    )));
                }
                if properties.as_ref().is_some_and(|it| it.id == Some(0)) {
                    return Err(Error::invalid("its subscription has the identifier 0"));
                }
                subscribe.filters.iter_mut().try_for_each(|filter| check_filter(&mut filter.path))
            }
            Packet::Unsubscribe(unsubscribe, _) => unsubscribe.filters.iter_mut().try_for_each(check_filter),
            Packet::Connect(..) => Err(Error::invalid("it connects twice")),
            _ => Ok(()),
        }
    }

    /// A packet goes to the client.
    pub(super) fn sends(&mut self, packet: &Packet) {
        match packet {
            Packet::Publish(publish, _) => match guarantee(publish) {
                (0, _) => (),
                (_, id) => self.unacked.push_back(id),
            },
            Packet::PubRel(release, _) => self.uncompleted.push_back(release.pkid),
            _ => (),
        }
    }

    fn hold(&mut self, publish: &Publish) -> Result<()> {
        self.held.push_back(publish.topic.len() + publish.payload.len() + HELD_EXTRA_BYTES);
        if self.held.iter().sum::<usize>() > MAX_HELD_BYTES {
            return Err(Error::new(Kind::TooLarge, "it sends more messages of QoS 2 than it releases"));
        }
        Ok(())
    }
}

pub(super) fn check_will(will: &LastWill) -> Result<()> {
    check_topic(&will.topic)
}

/// A message's QoS and its packet's id, which rumqttd shows only in this form.
fn guarantee(publish: &Publish) -> (u8, u16) {
    let mut publish = publish.clone();
    // Its bytes would be copied.
    (publish.topic, publish.payload) = (Bytes::new(), Bytes::new());
    let head = publish.serialize();
    (head[0] >> 1 & 0b11, u16::from_be_bytes([head[1], head[2]]))
}

/// The router takes acknowledgements only in the order in which it has sent.
fn expect(awaited: &mut VecDeque<u16>, id: u16) -> Result<()> {
    match awaited.pop_front() {
        Some(first) if first == id => Ok(()),
        _ => Err(Error::invalid(format!("it acknowledges {id}, which is not what it was sent first"))),
    }
}

fn check_properties(properties: &PublishProperties) -> Result<()> {
    // Each would keep up to 4096 topics for its connection.
    if properties.topic_alias.is_some() {
        return Err(Error::invalid("it uses an alias of a topic, which it was not offered"));
    }
    if !properties.subscription_identifiers.is_empty() {
        return Err(Error::invalid("it publishes with the identifier of a subscription"));
    }
    Ok(())
}

/// The router refuses four characters in a client's id; every text has its own name without them.
pub(super) fn router_name(client_id: &str) -> String {
    let mut name = String::with_capacity(client_id.len());
    for c in client_id.chars() {
        match c {
            '+' | '$' | '#' | '/' | '%' => name.push_str(&format!("%{:02x}", u32::from(c))),
            c => name.push(c),
        }
    }
    name
}

fn check_topic(topic: &[u8]) -> Result<()> {
    let topic = std::str::from_utf8(topic).map_err(|error| Error::invalid("its topic is no UTF-8").cause(error))?;
    if topic.is_empty() || topic.len() > MAX_TOPIC_BYTES {
        return Err(Error::invalid(format!("its topic is empty or longer than {MAX_TOPIC_BYTES} bytes")));
    }
    if has_wildcards(topic) || topic.contains('\0') {
        return Err(Error::invalid("its topic holds a wildcard"));
    }
    if topic.starts_with(|c: char| !c.is_ascii()) {
        return Err(Error::invalid("its topic begins with a letter outside ASCII")
            .hint("the embedded broker takes them everywhere but at the beginning"));
    }
    Ok(())
}

fn check_filter(filter: &mut String) -> Result<()> {
    if filter.len() > MAX_TOPIC_BYTES {
        return Err(Error::invalid(format!("its filter is longer than {MAX_TOPIC_BYTES} bytes")));
    }
    if !valid_filter(filter) || filter.contains('\0') {
        return Err(Error::invalid(format!("its filter `{filter}` is not one")));
    }
    if filter.starts_with("$share/") {
        return Err(Error::invalid("it asks for a shared subscription").hint("the embedded broker has none"));
    }
    if filter.starts_with('$') {
        filter.insert_str(0, SILENT);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rumqttd::protocol::{PubAck, PubAckReason, PubRel, PubRelReason};

    use super::*;

    #[test]
    fn topics_that_would_kill_the_router_stay_outside() {
        for topic in ["ñandú/1", "a/+/b", "a/#", "", "a\0b", &"a".repeat(MAX_TOPIC_BYTES + 1)] {
            assert!(check_topic(topic.as_bytes()).is_err(), "{topic}");
        }
        assert!(check_topic(b"\xff\xfe").is_err());
        for topic in ["a", "$SYS/x", "casa/ñandú", "/"] {
            check_topic(topic.as_bytes()).unwrap();
        }
    }

    /// To the topic `a`, with the id 1.
    fn publish(qos: u8, payload: usize) -> Packet {
        let head = [0x30 | qos << 1, 0, 1, 0, 1, b'a'];
        Packet::Publish(Publish::deserialize([&head[..], &vec![0; payload]].concat().into()), None)
    }

    #[test]
    fn only_what_was_sent_is_acknowledged_and_in_its_order() {
        let ack = |pkid| Packet::PubAck(PubAck { pkid, reason: PubAckReason::Success }, None);
        let mut guard = Guard::default();
        assert!(guard.check(&mut ack(1)).is_err());
        guard.sends(&publish(1, 1));
        guard.sends(&publish(0, 1));
        guard.check(&mut ack(1)).unwrap();
        assert!(guard.check(&mut ack(1)).is_err(), "twice");
        guard.sends(&publish(1, 1));
        assert!(guard.check(&mut ack(2)).is_err());
    }

    #[test]
    fn a_client_cannot_make_the_router_hold_more_and_more() {
        let release = || Packet::PubRel(PubRel { pkid: 1, reason: PubRelReason::Success }, None);
        let mut guard = Guard::default();
        assert!(guard.check(&mut release()).is_err());
        for _ in 0..100 {
            guard.check(&mut publish(2, 1 << 20)).unwrap();
            guard.check(&mut release()).unwrap();
        }
        for small in [1, 1 << 20] {
            let mut guard = Guard::default();
            let sent = (0..).take_while(|_| guard.check(&mut publish(2, small)).is_ok()).count();
            assert!(sent >= 3 && sent * (small + HELD_EXTRA_BYTES) <= MAX_HELD_BYTES, "{sent}");
        }
    }

    #[test]
    fn an_alias_and_identifiers_of_subscriptions_are_refused() {
        for properties in [
            PublishProperties { topic_alias: Some(1), ..PublishProperties::default() },
            PublishProperties { subscription_identifiers: vec![1], ..PublishProperties::default() },
        ] {
            let Packet::Publish(publish, _) = publish(0, 1) else { unreachable!() };
            assert!(Guard::default().check(&mut Packet::Publish(publish, Some(properties))).is_err());
        }
    }

    #[test]
    fn filters_are_checked_and_system_topics_are_silent() {
        let checked = |filter: &str| {
            let mut filter = filter.to_owned();
            check_filter(&mut filter).map(|()| filter)
        };
        assert_eq!(checked("vigia/#").unwrap(), "vigia/#");
        assert_eq!(checked("ñ/+").unwrap(), "ñ/+");
        assert_eq!(checked("$SYS/#").unwrap(), "_silent/$SYS/#");
        for filter in ["", "a#", "#/a", "a+/b", "$share/g/a"] {
            assert!(checked(filter).is_err(), "{filter}");
        }
    }

    #[test]
    fn client_ids_have_names_of_their_own() {
        assert_eq!(router_name("mosq/12%"), "mosq%2f12%25");
        assert_ne!(router_name("a/b"), router_name("a%2fb"));
    }
}

//! Keeps from rumqttd's router what would bring it down for everybody, and turns what it answers with a closed
//! connection although clients do it all the time.
//!
//! 0.20's router panics on a topic whose first character is not ASCII (it slices one byte off) and may panic on a
//! persistent shared subscription; it closes the connection of whoever subscribes to `$SYS/#`, as MQTT Explorer
//! does; it does not check filters; it keeps `+` and `#` in topics.

use rumqttd::protocol::{LastWill, Packet, has_wildcards, valid_filter};

use crate::base::{Error, Result};

/// Nobody publishes below this: `$SYS/#` is granted and stays silent.
const SILENT: &str = "_silent/";
/// A client's own limit of filters in one packet.
const MAX_FILTERS: usize = 256;

pub(super) fn check(packet: &mut Packet) -> Result<()> {
    match packet {
        Packet::Publish(publish, properties) => {
            let aliased = properties.as_ref().is_some_and(|it| it.topic_alias.is_some());
            check_topic(&publish.topic, aliased)
        }
        Packet::Subscribe(subscribe, _) => {
            if subscribe.filters.is_empty() || subscribe.filters.len() > MAX_FILTERS {
                return Err(Error::invalid(format!(
                    "it subscribes to none or more than {MAX_FILTERS} filters at once"
                )));
            }
            subscribe.filters.iter_mut().try_for_each(|filter| check_filter(&mut filter.path))
        }
        Packet::Unsubscribe(unsubscribe, _) => unsubscribe.filters.iter_mut().try_for_each(check_filter),
        Packet::Connect(..) => Err(Error::invalid("it connects twice")),
        _ => Ok(()),
    }
}

pub(super) fn check_will(will: &LastWill) -> Result<()> {
    check_topic(&will.topic, false)
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

fn check_topic(topic: &[u8], aliased: bool) -> Result<()> {
    let topic = std::str::from_utf8(topic).map_err(|error| Error::invalid("its topic is no UTF-8").cause(error))?;
    if topic.is_empty() && !aliased {
        return Err(Error::invalid("its topic is empty"));
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
    use super::*;

    #[test]
    fn topics_that_would_kill_the_router_stay_outside() {
        for topic in ["ñandú/1", "a/+/b", "a/#", "", "a\0b"] {
            assert!(check_topic(topic.as_bytes(), false).is_err(), "{topic}");
        }
        assert!(check_topic(b"\xff\xfe", false).is_err());
        for topic in ["a", "$SYS/x", "casa/ñandú", "/"] {
            check_topic(topic.as_bytes(), false).unwrap();
        }
        check_topic(b"", true).unwrap();
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

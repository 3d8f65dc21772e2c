//! Stands in for `broker.rs` in a build without the feature `broker`: says so instead of starting.

use std::{convert::Infallible, net::SocketAddr};

use crate::{
    base::{Error, Kind, Result},
    settings,
};

/// Cannot exist in this build.
pub struct Broker(Infallible);

impl Broker {
    pub fn start(_settings: &settings::Mqtt) -> Result<Broker> {
        Err(Error::new(Kind::Unsupported, "this build of vigia has no embedded MQTT broker")
            .hint("build it with the feature `broker`, or set mqtt.mode to \"external\" or \"off\""))
    }

    pub fn address(&self) -> SocketAddr {
        match self.0 {}
    }

    pub async fn stop(self) {
        match self.0 {}
    }
}

//! The first packet of a connection.
//!
//! Promises: a session that was read and is written again reads the same; a cancel key has 4 to 256 bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pgregent::client::startup_settings;
use pgregent::wire::{StartupPacket, encode, parse_startup};

fuzz_target!(|body: &[u8]| {
    match parse_startup(body) {
        Ok(StartupPacket::Session { version, parameters, options }) => {
            assert_eq!(version >> 16, 3);
            let pairs: Vec<(&str, &str)> = parameters.iter().map(|(name, value)| (&**name, &**value)).collect();
            let mut written = Vec::new();
            encode::startup(&mut written, version, &pairs);
            let again = parse_startup(&written[4..]).expect("written by us");
            assert_eq!(again, StartupPacket::Session { version, parameters: parameters.clone(), options: vec![] });
            assert!(options.iter().all(|name| name.starts_with("_pq_.")));
            let _ = startup_settings(&parameters);
        }
        Ok(StartupPacket::Cancel { secret, .. }) => assert!((4..=256).contains(&secret.len())),
        Ok(StartupPacket::SslRequest | StartupPacket::GssEncRequest) => assert_eq!(body.len(), 4),
        Err(_) => {}
    }
});

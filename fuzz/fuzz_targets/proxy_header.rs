//! The PROXY header that a load balancer puts before a connection.
//!
//! Promises: a header lies within the bytes and the limit; a part of it is never refused and never taken for
//! the whole; what follows it does not matter.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pgregent::net::{PROXY_HEADER_MAX, parse_proxy_header};

fuzz_target!(|bytes: &[u8]| {
    match parse_proxy_header(bytes) {
        Ok(Some(header)) => {
            assert!(header.len <= bytes.len() && header.len <= PROXY_HEADER_MAX);
            assert_eq!(parse_proxy_header(&bytes[..header.len]), Ok(Some(header)));
            for len in 0..header.len {
                assert_eq!(parse_proxy_header(&bytes[..len]), Ok(None));
            }
        }
        Ok(None) => assert!(bytes.len() < PROXY_HEADER_MAX),
        Err(_) => {}
    }
});

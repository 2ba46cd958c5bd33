//! What a request may carry, from any bytes. The checks are in the library, where an ordinary test runs them, too.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bourn_fuzz::requests(data));

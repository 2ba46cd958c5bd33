//! The fuzz targets' checks on drawn input, so that every test run looks a little.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_request_is_read_or_refused(
        data in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "[a-z0-9/.%_=&*,+-]{0,60}".prop_map(String::into_bytes),
            "(\\[)?([{\"a:\\[\\]},0-9 \n\r]){0,40}(\\])?".prop_map(String::into_bytes),
            "[0-9]{16}_[0-9]{16}".prop_map(String::into_bytes),
        ]
    ) {
        fuzz::requests(&data);
    }

    #[test]
    fn no_payload_breaks_out_of_its_event(
        data in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(0), Just(b':'), Just(b'e')], 0..40),
        ]
    ) {
        fuzz::events(&data);
    }
}

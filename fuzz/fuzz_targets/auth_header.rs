#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cove::fuzz::auth_header(bytes));

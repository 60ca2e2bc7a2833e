#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cowfs_fuzz::control_file::run(data));

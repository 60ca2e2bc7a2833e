//! `FORMAT`, the file by which a store is known.

use super::with_scratch;
use cowfs::catalog::{CatalogError, Store, StoreError};

/// One input.
pub fn run(data: &[u8]) {
    with_scratch(|dir| {
        std::fs::write(dir.join("FORMAT"), data).expect("FORMAT");
        let error = Store::open(dir).err().expect("there is no catalog");
        match error {
            StoreError::DamagedFormat { .. } => {}
            StoreError::UnknownVersion { found, .. } => assert_ne!(found, 1),
            // What is accepted says what a store says.
            StoreError::Catalog(CatalogError::Missing { .. }) => {
                let text = String::from_utf8_lossy(data);
                assert!(text.contains("magic") && text.contains('1'), "{text}");
            }
            other => panic!("{other}"),
        }
    });
}

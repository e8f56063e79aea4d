//! A store of the format before, given the format of today.

use super::StoreError;
use super::env::{Environment, TABLES, Table};
use super::opening::VERSION;

/// The same values without checksums.
const VERSION_BEFORE: &[u8] = b"yurt store 1";

impl Environment {
    /// Gives the values of a store of the version before their checksums, all in one transaction: a node that is upgraded
    /// keeps what nobody gives it again before it is needed.
    pub(super) fn convert(&self) -> Result<(), StoreError> {
        let is_before = {
            let transaction = self.env.read_txn()?;
            self.table(Table::Meta).get(&transaction, b"version")? == Some(VERSION_BEFORE)
        };
        if !is_before {
            return Ok(());
        }
        let converted = self.write(|tx| {
            for (table, _) in TABLES {
                let raw = self.table(table);
                let keys: Vec<Vec<u8>> = raw
                    .iter(&tx.transaction)?
                    .map(|record| record.map(|(key, _)| key.to_vec()))
                    .collect::<Result<_, _>>()?;
                for key in keys {
                    let value = raw.get(&tx.transaction, &key)?.map(<[u8]>::to_vec);
                    if let Some(value) = value {
                        tx.put(table, &key, &value)?;
                    }
                }
            }
            tx.put(Table::Meta, b"version", VERSION)
        });
        converted.map_err(|error| StoreError::Damaged(format!("it cannot be converted: {error}")))?;
        tracing::info!("the store of the release before was converted");
        self.sync()
    }
}

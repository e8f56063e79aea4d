//! A table that stays in the kernel as it was put there.

use std::io;

use super::NftError;
use super::dump::{self, Seen};
use super::socket::Netfilter;
use super::table::{self, Table};

/// Holds one table.
pub struct Held {
    netfilter: Netfilter,
    name: &'static str,
    placed: Option<Placed>,
}

/// What was put into the kernel.
struct Placed {
    table: Table,
    /// What the kernel showed of it then.
    seen: Seen,
    /// The number of the last change of anybody's, when it was last seen whole.
    generation: u32,
}

impl Held {
    /// For the table of this name; nothing is changed yet.
    ///
    /// # Errors
    ///
    /// When there is no socket to the kernel.
    pub fn open(name: &'static str) -> Result<Self, NftError> {
        Ok(Self { netfilter: Netfilter::open()?, name, placed: None })
    }

    /// Puts the table in the place of the one that is there, whoever made it, in one transaction.
    ///
    /// # Errors
    ///
    /// [`NftError`]; the old one is still there, unless the new one cannot be seen.
    pub async fn put(&mut self, table: Table) -> Result<(), NftError> {
        self.placed = None;
        self.netfilter.transact(table::replace(&table)).await?;
        let generation = self.generation().await?;
        let Some(seen) = self.see(&table).await? else { return Err(NftError::Changed) };
        if !seen.can_be(&table) {
            return Err(NftError::Changed);
        }
        self.placed = Some(Placed { table, seen, generation });
        Ok(())
    }

    /// Takes the table away; nothing to do if it is not there.
    ///
    /// # Errors
    ///
    /// [`NftError`].
    pub async fn remove(&mut self) -> Result<(), NftError> {
        self.placed = None;
        self.netfilter.transact(table::remove(self.name)).await
    }

    /// What was put there, if it is known to have been whole then.
    pub fn placed(&self) -> Option<&Table> {
        self.placed.as_ref().map(|placed| &placed.table)
    }

    /// Whether the kernel has the table exactly as it was put there: every element of its sets, every rule.
    ///
    /// # Errors
    ///
    /// [`NftError`] when that cannot be seen.
    pub async fn is_whole(&mut self) -> Result<bool, NftError> {
        let generation = self.generation().await?;
        let Some(placed) = self.placed.take() else { return Ok(false) };
        // Nobody has changed anything.
        let whole = placed.generation == generation
            || match self.see(&placed.table).await {
                Ok(seen) => seen.as_ref() == Some(&placed.seen),
                Err(error) => {
                    self.placed = Some(placed);
                    return Err(error);
                }
            };
        if whole {
            self.placed = Some(Placed { generation, ..placed });
        }
        Ok(whole)
    }

    async fn generation(&mut self) -> Result<u32, NftError> {
        let mut found = None;
        self.netfilter
            .ask(dump::get_generation(), |message| {
                found = found.or(dump::generation(message)?);
                Ok(())
            })
            .await?;
        found.ok_or(NftError::Answer)
    }

    /// What the kernel has of the table; nothing when it, or a set of it, is not there.
    async fn see(&mut self, table: &Table) -> Result<Option<Seen>, NftError> {
        let mut seen = Seen::default();
        let mut questions = vec![dump::get_table(table.name), dump::get_rules(table.name)];
        for set in &table.sets {
            seen.elements.insert(set.name.as_bytes().to_vec(), Default::default());
            questions.push(dump::get_elements(table.name, set.name));
        }
        for question in questions {
            match self.netfilter.ask(question, |message| seen.take(table.name, message)).await {
                Ok(()) => {}
                Err(NftError::Refused(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(seen))
    }
}

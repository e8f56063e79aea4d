//! A list of things in the forms of kubectl's `-o`.

use serde::Serialize;

use super::{Console, Document};
use crate::error::Error;

/// What `-o` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A table for a person, `wide` with more columns.
    Table {
        /// `-o wide`
        wide: bool,
    },
    /// `KIND/NAME`, a line each.
    Names,
    /// All of it, for a program.
    Document(Document),
}

/// A list of nodes, with everything that each form needs.
pub struct Listing<D, T> {
    /// The document.
    pub document: D,
    /// Names of the nodes.
    pub nodes: Vec<String>,
    /// Prints the table, wide or not, and what is to be remarked about it.
    pub table: T,
}

impl<D: Serialize, T: FnOnce(bool) -> Result<(), Error>> Listing<D, T> {
    /// Prints it in this form.
    ///
    /// # Errors
    ///
    /// As [`Console::line`].
    pub fn print(self, console: Console, form: Form) -> Result<(), Error> {
        match form {
            Form::Document(document) => console.document(document, &self.document),
            Form::Names => self.nodes.iter().try_for_each(|name| console.line(format!("node/{name}"))),
            Form::Table { wide } => (self.table)(wide),
        }
    }
}

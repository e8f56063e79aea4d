//! A keeper that is killed.

use std::cell::Cell;
use std::rc::Rc;

/// How many effects may still happen. Once blown nothing happens any more, so an error path cannot tidy up either.
#[derive(Debug, Clone)]
pub(crate) struct Fuse(Rc<Cell<u32>>);

impl Default for Fuse {
    fn default() -> Self {
        Self(Rc::new(Cell::new(u32::MAX)))
    }
}

impl Fuse {
    pub(crate) fn set(&self, effects: u32) {
        self.0.set(effects);
    }

    pub(crate) fn is_blown(&self) -> bool {
        self.0.get() == 0
    }

    pub(crate) fn burn(&self) -> Result<(), &'static str> {
        match self.0.get() {
            0 => Err("killed"),
            u32::MAX => Ok(()),
            left => {
                self.0.set(left - 1);
                Ok(())
            }
        }
    }
}

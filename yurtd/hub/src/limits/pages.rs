//! How many objects a page of a list is asked for with, so that it has about so many bytes: an API server counts
//! objects, and a Secret may have a hundred bytes or a million.

use super::{OBJECT_LIMIT, PAGE_BYTES, PAGE_LIMIT};

/// The first page: a thousand Services are two pages, and so are a thousand pods.
const FIRST: usize = 250;
/// However small they are.
const MOST: usize = 2000;

/// The size of the next page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageSize {
    objects: usize,
}

impl PageSize {
    /// Nothing is known of the objects.
    pub(crate) fn new() -> Self {
        Self { objects: FIRST }
    }

    /// Objects to ask for.
    pub(crate) fn objects(self) -> usize {
        self.objects
    }

    /// Bytes that the page may have.
    pub(crate) fn bytes(self) -> usize {
        if self.objects == 1 { OBJECT_LIMIT } else { PAGE_LIMIT }
    }

    /// A page has come with so many objects and bytes: the next may be larger, or has to be smaller.
    pub(crate) fn came(&mut self, objects: usize, bytes: usize) {
        let fits = PAGE_BYTES.saturating_mul(objects.max(1)) / bytes.max(1);
        // Small objects come first often enough: no page is more than four times as long as the one before.
        self.objects = fits.clamp(1, MOST).min(self.objects.saturating_mul(4));
    }

    /// The page was too big; `false` when it was a single object.
    pub(crate) fn was_too_big(&mut self) -> bool {
        let smaller = (self.objects / 5).max(1);
        std::mem::replace(&mut self.objects, smaller) > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_grow_and_shrink_to_the_bytes_that_are_wanted() {
        let mut page = PageSize::new();
        page.came(FIRST, FIRST * 100);
        assert_eq!(page.objects(), 4 * FIRST, "not at once");
        page.came(4 * FIRST, 4 * FIRST * 100);
        assert_eq!(page.objects(), MOST);
        page.came(MOST, MOST * 1024);
        assert_eq!(page.objects(), 1024);
        page.came(1024, 0);
        page.came(0, 0);
        assert!(page.objects() >= 1);
    }

    #[test]
    fn a_page_that_is_too_big_is_asked_for_in_parts_down_to_one_object() {
        let mut page = PageSize::new();
        assert_eq!(page.bytes(), PAGE_LIMIT);
        let mut sizes = Vec::new();
        while page.was_too_big() {
            sizes.push(page.objects());
        }
        assert_eq!(sizes, [50, 10, 2, 1]);
        assert_eq!(page.bytes(), OBJECT_LIMIT);
        page.came(1, 900_000);
        assert_eq!(page.objects(), 1);
        page.came(1, 9_000);
        assert_eq!(page.objects(), 4);
    }
}

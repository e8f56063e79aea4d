//! What a program is made of: the bytes of its sections by crate, from the map that its linker wrote (`-Map`).
//!
//! A symbol belongs to the crate that its mangled name begins with; an implementation counts for the crate of the type
//! that it is for. What has no such name (ring's assembler, libc, tables without a symbol) is [`OTHER`].

use std::collections::BTreeMap;

/// Whatever has no crate in its name.
pub const OTHER: &str = "(other)";
/// Unwinding tables, which belong to everybody.
const UNWIND: &str = "(unwinding)";

/// Bytes of one crate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes {
    pub text: u64,
    pub data: u64,
}

impl Bytes {
    pub fn all(self) -> u64 {
        self.text + self.data
    }
}

/// Every crate with its bytes, largest first.
pub fn by_crate(map: &str) -> Vec<(String, Bytes)> {
    let mut found: BTreeMap<String, Bytes> = BTreeMap::new();
    if map.trim_start().starts_with("VMA") {
        lld(map, |section, size| add(&mut found, section, size));
    } else {
        gnu(map, |section, size| add(&mut found, section, size));
    }
    let mut sorted: Vec<_> = found.into_iter().collect();
    sorted.sort_by_key(|(name, bytes)| (std::cmp::Reverse(bytes.all()), name.clone()));
    sorted
}

/// LLVM's linker, which rustc takes on x86-64: `VMA LMA SIZE ALIGN FILE:(.text.symbol)` an input section.
fn lld(map: &str, mut add: impl FnMut(&str, u64)) {
    for line in map.lines() {
        let Some((numbers, section)) = line.split_once(":(") else { continue };
        let size = numbers.split_whitespace().nth(2).and_then(|word| u64::from_str_radix(word, 16).ok());
        if let (Some(size), Some(section)) = (size, section.strip_suffix(')')) {
            add(section, size);
        }
    }
}

/// GNU's linker: ` .text.symbol 0xADDRESS 0xSIZE FILE`, on two lines if the name is long.
fn gnu(map: &str, mut add: impl FnMut(&str, u64)) {
    let mut waiting: Option<&str> = None;
    let body = map.split_once("Linker script and memory map").map_or(map, |(_, body)| body);
    for line in body.lines() {
        let mut words = line.split_whitespace();
        let section = match (waiting.take(), line.strip_prefix(' ').is_some_and(|rest| rest.starts_with('.')))
        {
            (_, true) => words.next(),
            (waiting, false) => waiting,
        };
        let Some(section) = section else { continue };
        let Some(address) = words.next() else {
            waiting = Some(section);
            continue;
        };
        // What the linker has dropped is at no address.
        if let (Some(1..), Some(size)) = (hex(address), words.next().and_then(hex)) {
            add(section, size);
        }
    }
}

fn hex(word: &str) -> Option<u64> {
    u64::from_str_radix(word.strip_prefix("0x")?, 16).ok()
}

fn add(found: &mut BTreeMap<String, Bytes>, section: &str, size: u64) {
    let kind = |name: &str| section == name || section.starts_with(&format!("{name}."));
    let name = || crate_of(section).unwrap_or(OTHER).to_owned();
    if kind(".text") {
        found.entry(name()).or_default().text += size;
    } else if kind(".eh_frame") || kind(".eh_frame_hdr") || kind(".gcc_except_table") {
        found.entry(UNWIND.to_owned()).or_default().data += size;
    } else if kind(".rodata") || kind(".data") || kind(".tdata") {
        found.entry(name()).or_default().data += size;
    }
}

/// The crate in a section's name: `.text._ZN8yurt_hub4view…`, `.text._ZN61_$LT$yurt_hub..view..View$u20$as$u20$…`.
fn crate_of(section: &str) -> Option<&str> {
    const DECORATION: [&str; 9] =
        ["_", "$LT$", "$RF$", "$u5b$", "$LP$", "$BP$", "mut$u20$", "const$u20$", "dyn$u20$"];
    if let Some((_, symbol)) = section.split_once("._R") {
        // The standard library's own: "…Cs7Zg3Kq_4core3ptr…".
        let (_, path) = symbol.split_once("Cs")?.1.split_once('_')?;
        return identifier(path);
    }
    let (_, symbol) = section.split_once("_ZN")?;
    let mut name = identifier(symbol)?;
    while let Some(bare) = DECORATION.iter().find_map(|decoration| name.strip_prefix(decoration)) {
        name = bare;
    }
    let end = name.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(name.len());
    (end > 0).then(|| &name[..end])
}

/// A name with its length before it.
fn identifier(symbol: &str) -> Option<&str> {
    let digits = symbol.find(|c: char| !c.is_ascii_digit())?;
    let (length, rest) = symbol.split_at(digits);
    rest.get(..length.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbol_belongs_to_the_crate_it_begins_with_or_is_for() {
        assert_eq!(crate_of(".text._ZN8yurt_hub4view4open17h0E"), Some("yurt_hub"));
        let implementation =
            ".text.unlikely._ZN61_$LT$yurt_hub..view..View$u20$as$u20$core..clone..Clone$GT$5clone17h0E";
        assert_eq!(crate_of(implementation), Some("yurt_hub"));
        assert_eq!(
            crate_of(".text._ZN40_$LT$$RF$mut$u20$T$u20$as$u20$core..fmt..Debug$GT$3fmt17h0E"),
            Some("T")
        );
        let standard =
            ".text._RNvMs_NtNtNtCsjrHSEGnQ3l9_3std12backtrace_rs9symbolize3gimliNtB4_5Cache7resolve";
        assert_eq!(crate_of(standard), Some("std"));
        assert_eq!(crate_of(".text.aes_hw_encrypt"), None);
        assert_eq!(crate_of(".rodata..L__unnamed_1"), None);
    }

    #[test]
    fn sizes_are_read_from_one_line_or_two_and_dropped_sections_do_not_count() {
        let map = "Archive member\n .text._ZN4gone1fE 0x1 0x99 x.o\nLinker script and memory map\n\n \
                   .text._ZN5hyper5proto17h0E\n                0x0000000000001000       0x20 a.o\n \
                   .text.memcpy   0x0000000000001020       0x10 libc.a\n \
                   .rodata._ZN5hyper3abcE 0x2000 0x5 a.o\n .text._ZN4gone1fE 0x0 0x99 b.o\n \
                   .eh_frame      0x3000 0x7 a.o\n .debug_info    0x4000 0x77 a.o\n *fill*         0x5000 0x3\n";
        assert_eq!(
            by_crate(map),
            [
                ("hyper".to_owned(), Bytes { text: 0x20, data: 5 }),
                (OTHER.to_owned(), Bytes { text: 0x10, data: 0 }),
                (UNWIND.to_owned(), Bytes { text: 0, data: 7 }),
            ]
        );
    }

    #[test]
    fn both_linkers_maps_are_read() {
        let map = "             VMA              LMA     Size Align Out     In      Symbol\n             \
                   2a8              2a8       40     4 .text\n             2a8              2a8       \
                   1f     4         /x/y.o:(.text._ZN5hyper5proto17h0E)\n             2a8              2a8       \
                   1f     1                 hyper::proto\n";
        assert_eq!(by_crate(map), [("hyper".to_owned(), Bytes { text: 0x1f, data: 0 })]);
    }
}

//! What happens in a run, and how likely each of it is.

use proptest::prelude::*;

/// Most branches that are mounted at once.
pub const BRANCHES_MAX: usize = 3;
/// Files that a run holds open at most.
pub const SLOTS: usize = 3;

/// A range of bytes.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    pub offset: u64,
    pub len: u64,
}

/// How a file is opened to be written to; it is made if it is missing.
#[derive(Clone, Copy, Debug)]
pub enum How {
    Plain,
    /// `O_TRUNC`
    Truncate,
    /// `O_APPEND`: the offset does not matter.
    Append,
    /// `O_DSYNC`
    Sync,
    /// `O_DIRECT` on the mount; the host would want everything aligned.
    Direct,
}

/// The modes of fallocate(2).
#[derive(Clone, Copy, Debug)]
pub enum Allocate {
    Extend,
    KeepSize,
    Punch,
    Zero,
    ZeroKeepSize,
}

/// A change that is made by path, on the mount and on the host alike.
#[derive(Clone, Debug)]
pub enum Act {
    Create(String, u32),
    Mkdir(String, u32),
    Symlink(String, String),
    Fifo(String),
    Socket(String),
    Write(String, How, Span, u8),
    Truncate(String, u64),
    Allocate(String, Allocate, Span),
    /// From, to, offset in the target.
    Copy(String, Span, String, u64),
    /// Written through a shared memory map, within the file.
    Map(String, Span, u8),
    Unlink(String),
    Rmdir(String),
    Rename(String, String),
    RenameNoReplace(String, String),
    Exchange(String, String),
    Link(String, String),
    Chmod(String, u32),
    Chown(String, u32),
    Touch(String, u32),
    Fsync(String),
}

/// A change through something that stays open.
#[derive(Clone, Copy, Debug)]
pub enum HeldAct {
    Write(Span, u8),
    Truncate(u64),
    Allocate(Allocate, Span),
    /// Through the memory map that was made when the file was opened.
    Poke(u64, u8),
    Read(Span),
    Fsync,
    Close,
}

#[derive(Clone, Debug)]
pub enum Op {
    Act(Act),
    Hold(usize, String),
    Held(usize, HeldAct),
    /// All trees are compared; cold: what the kernel has cached of their files is dropped first.
    Compare {
        cold: bool,
    },
    /// Of the branch as it is mounted, and with files held open.
    Fork,
    /// With the parent unmounted.
    ForkUnmounted,
    Remount,
    Kill,
    /// Removes a branch that is not the last; the others must not notice.
    Delete,
    Switch(usize),
}

const DIRS: [&str; 3] = ["d", "d/e", "pg_wal"];
const FILES: [&str; 8] = [
    "a",
    "b",
    "c",
    "d/a",
    "d/b",
    "d/e/a",
    "pg_wal/000000010000000000000001",
    "pg_wal/000000010000000000000002",
];

/// What every run begins with: otherwise most operations would only find that nothing is there.
pub fn beginning() -> Vec<Op> {
    let mkdir = |path: &&str| Op::Act(Act::Mkdir((*path).to_owned(), 0o755));
    let fill = |path: &&str| {
        let span = Span { offset: 100, len: 30_000 };
        Op::Act(Act::Write((*path).to_owned(), How::Plain, span, 77))
    };
    DIRS.iter().map(mkdir).chain(FILES.iter().map(fill)).collect()
}

fn file() -> impl Strategy<Value = String> {
    prop::sample::select(FILES.to_vec()).prop_map(str::to_owned)
}

fn dir() -> impl Strategy<Value = String> {
    prop::sample::select(DIRS.to_vec()).prop_map(str::to_owned)
}

/// Mostly files; what is a directory for the most part may become one, and the other way round.
fn path() -> impl Strategy<Value = String> {
    prop_oneof![12 => file(), 1 => dir()]
}

fn odd_path() -> impl Strategy<Value = String> {
    prop_oneof![
        40 => path(),
        1 => Just("n".repeat(255)),
        1 => Just("n".repeat(256)),
        1 => Just("a/below/a/file".to_owned()),
        1 => Just("d/../d/a".to_owned()),
    ]
}

/// Offsets near the edges of granules, where the mistakes are; now and then beyond one request.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => (0u64..12).prop_map(|g| g * 4096),
        6 => (0u64..12, 0u64..3).prop_map(|(g, d)| (g * 4096 + d).saturating_sub(1)),
        6 => 0u64..50_000,
        1 => (0u64..3, 0u64..3).prop_map(|(m, d)| ((1 << 20) * m + d).saturating_sub(1)),
    ]
}

fn span() -> impl Strategy<Value = Span> {
    let len = prop_oneof![
        8 => 1u64..20_000,
        2 => (1u64..4).prop_map(|g| g * 4096),
        1 => Just(1_200_000),
    ];
    (offset(), len).prop_map(|(offset, len)| Span { offset, len })
}

fn how() -> impl Strategy<Value = How> {
    prop_oneof![
        6 => Just(How::Plain),
        1 => Just(How::Truncate),
        2 => Just(How::Append),
        1 => Just(How::Sync),
        2 => Just(How::Direct),
    ]
}

fn allocate() -> impl Strategy<Value = Allocate> {
    prop_oneof![
        1 => Just(Allocate::Extend),
        1 => Just(Allocate::KeepSize),
        3 => Just(Allocate::Punch),
        1 => Just(Allocate::Zero),
        1 => Just(Allocate::ZeroKeepSize),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let target = prop::sample::select(vec!["a", "b", "d/a", "d/../c", "nowhere"]);
    prop_oneof![
        4 => (odd_path(), 0u32..0o1000).prop_map(|(p, m)| Act::Create(p, m)),
        4 => (dir(), 0u32..0o1000).prop_map(|(p, m)| Act::Mkdir(p, m)),
        1 => (odd_path(), 0u32..0o1000).prop_map(|(p, m)| Act::Mkdir(p, m)),
        1 => (path(), target).prop_map(|(p, t)| Act::Symlink(p, t.to_owned())),
        1 => prop_oneof![path().prop_map(Act::Fifo), path().prop_map(Act::Socket)],
        24 => (path(), how(), span(), 1u8..).prop_map(|(p, h, s, b)| Act::Write(p, h, s, b)),
        10 => (path(), offset()).prop_map(|(p, s)| Act::Truncate(p, s)),
        9 => (path(), allocate(), span()).prop_map(|(p, m, s)| Act::Allocate(p, m, s)),
        5 => (path(), span(), path(), offset()).prop_map(|(a, s, b, o)| Act::Copy(a, s, b, o)),
        // Whole granules, which are shared where the target is a file of this branch alone.
        4 => (path(), path(), 0u64..4, 0u64..4, 1u64..12).prop_map(|(a, b, from, to, len)| {
            Act::Copy(a, Span { offset: from * 4096, len: len * 4096 }, b, to * 4096)
        }),
        5 => (path(), span(), 1u8..).prop_map(|(p, s, b)| Act::Map(p, s, b)),
        4 => odd_path().prop_map(Act::Unlink),
        1 => dir().prop_map(Act::Rmdir),
        4 => (path(), odd_path()).prop_map(|(a, b)| Act::Rename(a, b)),
        1 => (dir(), dir()).prop_map(|(a, b)| Act::Rename(a, b)),
        2 => (path(), path()).prop_map(|(a, b)| Act::RenameNoReplace(a, b)),
        2 => (path(), path()).prop_map(|(a, b)| Act::Exchange(a, b)),
        3 => (path(), odd_path()).prop_map(|(a, b)| Act::Link(a, b)),
        2 => (path(), 0u32..0o10000).prop_map(|(p, m)| Act::Chmod(p, m)),
        1 => (path(), 0u32..3).prop_map(|(p, u)| Act::Chown(p, u)),
        1 => (path(), any::<u32>()).prop_map(|(p, t)| Act::Touch(p, t)),
        2 => prop_oneof![path(), dir()].prop_map(Act::Fsync),
    ]
}

fn held_act() -> impl Strategy<Value = HeldAct> {
    prop_oneof![
        6 => (span(), 1u8..).prop_map(|(s, b)| HeldAct::Write(s, b)),
        3 => offset().prop_map(HeldAct::Truncate),
        2 => (allocate(), span()).prop_map(|(m, s)| HeldAct::Allocate(m, s)),
        4 => (offset(), 1u8..).prop_map(|(o, b)| HeldAct::Poke(o, b)),
        2 => span().prop_map(HeldAct::Read),
        1 => Just(HeldAct::Fsync),
        1 => Just(HeldAct::Close),
    ]
}

pub fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        80 => act().prop_map(Op::Act),
        5 => (0..SLOTS, file()).prop_map(|(slot, p)| Op::Hold(slot, p)),
        14 => (0..SLOTS, held_act()).prop_map(|(slot, act)| Op::Held(slot, act)),
        5 => any::<bool>().prop_map(|cold| Op::Compare { cold }),
        3 => Just(Op::Fork),
        1 => Just(Op::ForkUnmounted),
        2 => Just(Op::Remount),
        2 => Just(Op::Kill),
        1 => Just(Op::Delete),
        3 => (0..BRANCHES_MAX).prop_map(Op::Switch),
    ]
}

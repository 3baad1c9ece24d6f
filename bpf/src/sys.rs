//! Every `unsafe` of podgate: calls that libbpf-rs does not wrap, each behind a safe function.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use libbpf_rs::libbpf_sys;

use crate::abi::{ControlRecord, FlowUse};

/// TC ingress of a device, as TCX.
pub(crate) const TCX_INGRESS: u32 = libbpf_sys::BPF_TCX_INGRESS;
/// TC egress of a device, as TCX.
pub(crate) const TCX_EGRESS: u32 = libbpf_sys::BPF_TCX_EGRESS;

/// What a map without batches answers to one: a number of the kernel's own, which no libc knows.
pub(crate) const ENOTSUPP: i32 = 524;

/// libbpf's calls return a negative errno.
fn check(ret: i32) -> io::Result<i32> {
    if ret < 0 { Err(io::Error::from_raw_os_error(-ret)) } else { Ok(ret) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

/// Opens a pinned program or link.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    // SAFETY: the path is a live NUL-terminated string.
    let fd = check(unsafe { libbpf_sys::bpf_obj_get(path.as_ptr()) })?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a program or link.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: the path is a live NUL-terminated string, the descriptor is borrowed for the call.
    check(unsafe { libbpf_sys::bpf_obj_pin(fd.as_raw_fd(), path.as_ptr()) }).map(drop)
}

/// Refuses every later change of a map from user space.
pub(crate) fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call.
    check(unsafe { libbpf_sys::bpf_map_freeze(map.as_raw_fd()) }).map(drop)
}

/// Attaches a program to a device as the first of its TCX hook. EINVAL: the kernel has no TCX (before 6.6).
pub(crate) fn tcx_attach_first(
    program: BorrowedFd<'_>,
    ifindex: u32,
    hook: u32,
) -> io::Result<OwnedFd> {
    let opts = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as _,
        flags: libbpf_sys::BPF_F_BEFORE,
        ..Default::default()
    };
    // SAFETY: opts is a whole, zero-extended structure of the size it names.
    let fd = check(unsafe {
        libbpf_sys::bpf_link_create(program.as_raw_fd(), ifindex as i32, hook, &opts)
    })?;
    // SAFETY: as in open_pin.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes an existing link run another program, atomically.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are borrowed for the call; NULL options are allowed.
    check(unsafe {
        libbpf_sys::bpf_link_update(link.as_raw_fd(), program.as_raw_fd(), std::ptr::null())
    })
    .map(drop)
}

/// Returns when no packet is in the middle of a program, or of a list of filters, that it entered before the call: one
/// RCU grace period, some milliseconds.
pub(crate) fn wait_for_readers() {
    /// Where the kernel does not wait on request (nohz_full): longer than any packet takes, unless its CPU is held up.
    const INSTEAD: std::time::Duration = std::time::Duration::from_millis(100);
    // SAFETY: the call takes two numbers and touches no memory of ours.
    let done = unsafe {
        nix::libc::syscall(nix::libc::SYS_membarrier, nix::libc::MEMBARRIER_CMD_GLOBAL, 0, 0)
    };
    if done != 0 {
        std::thread::sleep(INSTEAD);
    }
}

/// Detaches a link from its device, also if others hold it open.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call.
    check(unsafe { libbpf_sys::bpf_link_detach(link.as_raw_fd()) }).map(drop)
}

/// The ids of a TCX hook's programs, in the order in which they run. Empty where the kernel has no TCX.
pub(crate) fn tcx_programs(ifindex: u32, hook: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; 64];
    let mut opts = libbpf_sys::bpf_prog_query_opts {
        sz: size_of::<libbpf_sys::bpf_prog_query_opts>() as _,
        prog_ids: ids.as_mut_ptr(),
        ..Default::default()
    };
    opts.__bindgen_anon_1.count = ids.len() as u32;
    // SAFETY: prog_ids points to `count` writable words that outlive the call.
    let ret = unsafe { libbpf_sys::bpf_prog_query_opts(ifindex as i32, hook, &mut opts) };
    match check(ret) {
        Ok(_) => {
            // SAFETY: on success the kernel has set the count of either union member, both u32.
            ids.truncate(unsafe { opts.__bindgen_anon_1.count } as usize);
            Ok(ids)
        }
        Err(e) if e.raw_os_error() == Some(nix::libc::EINVAL) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// The entries of a hash map, bucket by bucket: an entry that exists all the time is seen, also while others come and
/// go. Kernel 5.6.
pub(crate) fn each_entry(
    map: BorrowedFd<'_>,
    sizes: (usize, usize),
    mut each: impl FnMut(&[u8], &[u8]),
) -> io::Result<()> {
    /// More than any bucket of a hash holds.
    const BATCH: usize = 4096;
    let (key_size, value_size) = sizes;
    let (mut keys, mut values) = (vec![0_u8; BATCH * key_size], vec![0_u8; BATCH * value_size]);
    // The kernel's place in the map: a bucket's number for a hash, never more than a key of at least 4 bytes.
    let (mut from, mut to) = (vec![0_u8; key_size.max(8)], vec![0_u8; key_size.max(8)]);
    let mut first = true;
    loop {
        let mut count = BATCH as u32;
        let at = if first { std::ptr::null_mut() } else { from.as_mut_ptr() };
        // SAFETY: keys and values have room for `count` entries of the map's own sizes, the two places for one key; all
        // outlive the call. NULL options are allowed.
        let ret = unsafe {
            libbpf_sys::bpf_map_lookup_batch(
                map.as_raw_fd(),
                at.cast(),
                to.as_mut_ptr().cast(),
                keys.as_mut_ptr().cast(),
                values.as_mut_ptr().cast(),
                &mut count,
                std::ptr::null(),
            )
        };
        let ended = match check(ret) {
            Ok(_) => false,
            Err(e) if e.raw_os_error() == Some(nix::libc::ENOENT) => true,
            Err(e) if e.raw_os_error() == Some(nix::libc::EINTR) => continue,
            Err(e) => return Err(e),
        };
        let found = (count as usize).min(BATCH);
        for (key, value) in
            keys.chunks_exact(key_size).zip(values.chunks_exact(value_size)).take(found)
        {
            each(key, value);
        }
        if ended {
            return Ok(());
        }
        std::mem::swap(&mut from, &mut to);
        first = false;
    }
}

/// A batch of no entries: whether a map takes batches, ENOTSUPP if it does not. (libbpf-rs divides by the count.)
pub(crate) fn update_nothing(map: BorrowedFd<'_>) -> io::Result<()> {
    let mut count = 0_u32;
    let opts = libbpf_sys::bpf_map_batch_opts {
        sz: size_of::<libbpf_sys::bpf_map_batch_opts>() as _,
        ..Default::default()
    };
    // SAFETY: with a count of 0 neither keys nor values are read; the count and the options outlive the call.
    check(unsafe {
        libbpf_sys::bpf_map_update_batch(
            map.as_raw_fd(),
            std::ptr::null(),
            std::ptr::null(),
            &mut count,
            &opts,
        )
    })
    .map(drop)
}

/// Whether the kernel has TCX at all, by a query of a hook of the loopback device.
pub(crate) fn has_tcx() -> bool {
    const LOOPBACK: i32 = 1;
    let mut opts = libbpf_sys::bpf_prog_query_opts {
        sz: size_of::<libbpf_sys::bpf_prog_query_opts>() as _,
        ..Default::default()
    };
    // SAFETY: opts is a whole structure of the size it names, without a buffer to write to.
    check(unsafe { libbpf_sys::bpf_prog_query_opts(LOOPBACK, TCX_INGRESS, &mut opts) }).is_ok()
}

/// What the kernel says of a loaded program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramSize {
    /// Instructions as loaded.
    pub instructions: u32,
    /// Bytes of machine code; 0 where programs are interpreted.
    pub jited_bytes: u32,
    /// Instructions that the verifier walked; 0 before kernel 5.16, which does not report it.
    pub verified: u32,
}

/// The size of a program and of its verification.
pub(crate) fn program_size(program: BorrowedFd<'_>) -> io::Result<ProgramSize> {
    const INSTRUCTION: u32 = 8;
    let info = program_info(program)?;
    Ok(ProgramSize {
        instructions: info.xlated_prog_len / INSTRUCTION,
        jited_bytes: info.jited_prog_len,
        verified: info.verified_insns,
    })
}

/// The kernel's id of a program.
pub(crate) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    program_info(program).map(|info| info.id)
}

fn program_info(program: BorrowedFd<'_>) -> io::Result<libbpf_sys::bpf_prog_info> {
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut length = size_of::<libbpf_sys::bpf_prog_info>() as u32;
    // SAFETY: info is a writable structure of `length` bytes.
    check(unsafe {
        libbpf_sys::bpf_prog_get_info_by_fd(program.as_raw_fd(), &mut info, &mut length)
    })?;
    Ok(info)
}

/// What a TC program did to a packet.
pub(crate) struct TestRun {
    pub(crate) action: u32,
    /// Average, nanoseconds.
    pub(crate) duration: u32,
    pub(crate) packet: Vec<u8>,
    pub(crate) mark: u32,
    pub(crate) priority: u32,
}

/// Runs a TC program on a packet with this mark.
pub(crate) fn test_run(
    program: BorrowedFd<'_>,
    (ifindex, ingress_ifindex): (u32, u32),
    mark: u32,
    packet: &[u8],
    repeat: u32,
) -> io::Result<TestRun> {
    /// `struct __sk_buff`, and where linux/bpf.h has the fields that the kernel lets us set.
    const CONTEXT: usize = 192;
    const MARK: usize = 8;
    const PRIORITY: usize = 32;
    const INGRESS_IFINDEX: usize = 36;
    const IFINDEX: usize = 40;
    /// Room for what a program may put in front.
    const GROWTH: usize = 256;

    let mut context = [0_u8; CONTEXT];
    context[MARK..][..4].copy_from_slice(&mark.to_ne_bytes());
    context[INGRESS_IFINDEX..][..4].copy_from_slice(&ingress_ifindex.to_ne_bytes());
    context[IFINDEX..][..4].copy_from_slice(&ifindex.to_ne_bytes());
    let mut out = vec![0_u8; packet.len() + GROWTH];
    let mut after = [0_u8; CONTEXT];
    let mut opts = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as _,
        data_in: packet.as_ptr().cast(),
        data_size_in: packet.len() as u32,
        data_out: out.as_mut_ptr().cast(),
        data_size_out: out.len() as u32,
        ctx_in: context.as_ptr().cast(),
        ctx_size_in: context.len() as u32,
        ctx_out: after.as_mut_ptr().cast(),
        ctx_size_out: after.len() as u32,
        repeat: repeat as i32,
        ..Default::default()
    };
    // SAFETY: every pointer leads to as many bytes as its size says, all of which outlive the call.
    check(unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &mut opts) })?;
    out.truncate(opts.data_size_out as usize);
    let word = |at: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&after[at..at + 4]);
        u32::from_ne_bytes(word)
    };
    Ok(TestRun {
        action: opts.retval,
        duration: opts.duration,
        packet: out,
        mark: word(MARK),
        priority: word(PRIORITY),
    })
}

/// SO_NETNS_COOKIE: the kernel's never-reused number of the calling thread's network namespace.
pub(crate) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as nix::libc::socklen_t;
    // SAFETY: the option is 8 bytes long and so is the buffer.
    let ret = unsafe {
        nix::libc::getsockopt(
            socket.as_raw_fd(),
            nix::libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &mut length,
        )
    };
    if ret == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// What the process prints when its time is over: set before the timer is, never freed.
static LAST_ANSWER: AtomicPtr<Vec<u8>> = AtomicPtr::new(std::ptr::null_mut());

/// Prints the last answer and ends the process. Calls nothing but what a signal handler may call.
extern "C" fn time_is_over(_signal: nix::libc::c_int) {
    // SAFETY: all three are async-signal-safe; the vector behind the pointer is never changed nor freed.
    unsafe {
        // without a reader of stdout the write waits too: the second signal is not handled and ends the process
        nix::libc::alarm(1);
        if let Some(answer) = LAST_ANSWER.load(Ordering::Acquire).as_ref() {
            nix::libc::write(1, answer.as_ptr().cast(), answer.len());
        }
        nix::libc::_exit(1)
    }
}

/// Has the kernel end this process in `seconds`: `answer` goes to stdout, the exit code is 1.
pub(crate) fn end_process_in(seconds: u32, answer: Vec<u8>) -> io::Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    // leaked on purpose: the handler may read it at any moment from now on
    LAST_ANSWER.store(Box::leak(Box::new(answer)), Ordering::Release);
    let flags = SaFlags::SA_RESETHAND | SaFlags::SA_NODEFER;
    let action = SigAction::new(SigHandler::Handler(time_is_over), flags, SigSet::empty());
    // SAFETY: the handler is async-signal-safe, as said there.
    unsafe { sigaction(Signal::SIGALRM, &action) }?;
    // the signal mask is inherited: the runtime may have blocked it
    SigSet::from(Signal::SIGALRM).thread_unblock()?;
    // SAFETY: touches no memory.
    unsafe { nix::libc::alarm(seconds) };
    Ok(())
}

/// The first page of an array map, shared with the programs and with every other process that maps it.
#[derive(Debug)]
struct SharedPage {
    at: NonNull<std::ffi::c_void>,
}

// SAFETY: what is in it is reached through atomics only.
unsafe impl Send for SharedPage {}
// SAFETY: as above.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    const LENGTH: usize = 4096;

    /// Maps the array; it must have been created with BPF_F_MMAPABLE.
    fn map(map: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of ours.
        let at = unsafe {
            nix::libc::mmap(
                std::ptr::null_mut(),
                Self::LENGTH,
                nix::libc::PROT_READ | nix::libc::PROT_WRITE,
                nix::libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if at == nix::libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(at)
            .map(|at| Self { at })
            .ok_or_else(|| io::Error::other("mapped at address 0"))
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and no reference into it outlives self.
        unsafe { nix::libc::munmap(self.at.as_ptr(), Self::LENGTH) };
    }
}

/// The `control` map's only value.
#[derive(Debug)]
pub(crate) struct SharedControl {
    page: SharedPage,
}

/// A word of the control record.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ControlWord {
    Epoch,
    Mode,
    TellAllowed,
    EventsPerSecond,
    Build,
}

impl SharedControl {
    pub(crate) fn map(map: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { page: SharedPage::map(map)? })
    }

    fn word(&self, word: ControlWord) -> &AtomicU32 {
        let record = self.page.at.cast::<ControlRecord>().as_ptr();
        // SAFETY: the mapping is page-aligned, at least as long as the record and lives as long as self;
        // each field is an aligned u32 that all sides change atomically.
        unsafe {
            AtomicU32::from_ptr(match word {
                ControlWord::Epoch => &raw mut (*record).epoch,
                ControlWord::Mode => &raw mut (*record).mode,
                ControlWord::TellAllowed => &raw mut (*record).tell_allowed,
                ControlWord::EventsPerSecond => &raw mut (*record).events_per_second,
                ControlWord::Build => &raw mut (*record).build,
            })
        }
    }

    pub(crate) fn load(&self, word: ControlWord) -> u32 {
        self.word(word).load(Ordering::SeqCst)
    }

    pub(crate) fn store(&self, word: ControlWord, value: u32) {
        self.word(word).store(value, Ordering::SeqCst);
    }

    pub(crate) fn add(&self, word: ControlWord, value: u32) -> u32 {
        self.word(word).fetch_add(value, Ordering::SeqCst).wrapping_add(value)
    }
}

/// The only value of the `commit_steps` map.
#[derive(Debug)]
pub(crate) struct SharedSteps {
    page: SharedPage,
}

impl SharedSteps {
    pub(crate) fn map(map: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { page: SharedPage::map(map)? })
    }

    pub(crate) fn word(&self) -> &AtomicU32 {
        // SAFETY: the first word of a page that lives as long as self; programs read it, processes change it atomically.
        unsafe { AtomicU32::from_ptr(self.page.at.cast::<u32>().as_ptr()) }
    }
}

/// The two values of the `flow_use` map.
#[derive(Debug)]
pub(crate) struct SharedUse {
    page: SharedPage,
}

impl SharedUse {
    pub(crate) fn map(map: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { page: SharedPage::map(map)? })
    }

    /// The number of slots of a family: 0 for IPv4, 1 for IPv6.
    pub(crate) fn slots(&self, family: usize) -> &AtomicU64 {
        let records = self.page.at.cast::<[FlowUse; 2]>().as_ptr();
        // SAFETY: an array's values follow each other 8 bytes apart, inside the page, which lives as long as self; all
        // sides change them atomically.
        unsafe { AtomicU64::from_ptr(&raw mut (*records)[family & 1].slots) }
    }
}

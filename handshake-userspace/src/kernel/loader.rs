//! Loads the object and attaches the hook table, hook by hook, by trying.
//!
//! The order matters: offsets and filters are set before the verifier sees a program; then everything is attached
//! and tells nothing; then the kernel side is told what will be seen, and all hooks begin at that moment; what was under
//! way by then is the snapshot's. What a newcomer would get wrong: a program that loads may still not attach
//! (fentry on arm64 6.1, functions with more than six arguments), so both are tried before a way counts.

use std::collections::{HashMap, HashSet};

use aya::{
    Btf, Ebpf,
    maps::RingBuf,
    programs::{
        BtfTracePoint, CgroupAttachMode, FEntry, FExit, KProbe, Program as LoadedProgram, SockOps, TracePoint,
    },
};
use bytes::Bytes;
use handshake_common::event::Attach;

use super::{
    AttachChoice, Attached, HookStatus, LiveTrace, StartError, TraceOptions,
    attach_problem::{AttachProblem, chain, is_forbidden, kind, lacks_cgroups, name, unless_loaded},
    beginning::{begin_to_watch, requests_are_seen_by},
    btf::{Btf as KernelBtf, BtfError},
    canary::Canary,
    cgroup::Followed,
    counters::KernelCounters,
    globals::{Globals, ring_bytes},
    hook_table::{HOOKS, Hook, LACKS_UNDER_LOCKDOWN, Place, Program, Way},
    host,
    kernel_calls::{self, Object},
    log_messages,
    mib::MibReader,
    object::object,
    offsets::{self, ResolvedOffsets},
    snapshot,
    sweep::Sweeper,
};
use crate::{model::drop_reasons::DropReasons, source::ring_buffer::RingBufferSource};

const BTF_OF_THE_KERNEL: &str = "/sys/kernel/btf/vmlinux";
/// A mode in which this many hooks failed and none worked is not tried for the others.
const FAILURES_THAT_CONDEMN_A_MODE: usize = 2;

/// Loads and attaches. Needs a tokio runtime for the source.
pub fn start(options: &TraceOptions) -> Result<LiveTrace, StartError> {
    let bytes = object()?;
    let path = options.btf.clone().unwrap_or_else(|| BTF_OF_THE_KERNEL.into());
    let Known { resolved, drop_reasons, object, retransmit_error_is_told } = resolve(&path, bytes)?;
    let missing = host::missing_capabilities();
    if !missing.is_empty() {
        return Err(StartError::NoPrivilege(format!(
            "tracing needs {}, which this process lacks: run it as root (`sudo handshake`), or give the file \
             the capabilities (`setcap cap_bpf,cap_perfmon,cap_net_admin+ep`)",
            missing.join(" and ")
        )));
    }
    let btf = Btf::parse_file(&path, aya::Endianness::default())
        .map_err(|error| StartError::Failed(format!("{}: {error}", path.display())))?;
    let cpus = aya::util::nr_cpus()
        .map_err(|(file, error)| StartError::Failed(format!("cannot count CPUs: {file}: {error}")))?;
    let locked = host::kernel_memory_is_locked();
    let canary = Canary::prepare(options.canary);
    let mut filter = canary.past(&options.filter);
    if let Some(namespace) = host::other_pid_namespace() {
        (filter.own_pidns_device, filter.own_pidns_inode) = (namespace.device, namespace.inode);
    }
    let ring_bytes = ring_bytes(options.ring_bytes, cpus);
    let globals = Globals {
        offsets: resolved.offsets,
        filter,
        locked_down: u32::from(locked),
        told_reasons: drop_reasons.told(),
        retransmit_error_is_told: u32::from(retransmit_error_is_told),
        ring_bytes,
    };
    let mut ebpf = globals.load(object.as_bytes(), &btf, cpus)?;
    let cgroups = Followed::start(&options.cgroups, &mut ebpf)?;
    let mut counters = KernelCounters::map(&ebpf, cpus)?;
    let mut attacher = Attacher::new(&btf, options.attach, locked);
    let mut hooks = Vec::with_capacity(HOOKS.len());
    for hook in HOOKS {
        let status = attacher.attach(&mut ebpf, hook);
        if status.attached.is_none() && hook.required {
            return Err(attacher.refusal(hook, &status));
        }
        hooks.push(status);
    }
    attacher.require_the_mode(&hooks)?;
    begin_to_watch(&mut ebpf, &hooks).map_err(|problem| {
        StartError::Failed(format!("the kernel side cannot be told its mode: {problem}"))
    })?;
    let (seen, snapshot_status) = snapshot::take(&mut ebpf, &btf, &options.cgroups);
    hooks.push(snapshot_status);
    counters.watch_programs(&ebpf);
    let mut ring = ebpf
        .take_map("EVENTS")
        .ok_or_else(|| StartError::Failed("the object has no map EVENTS".to_owned()))
        .and_then(|map| RingBuf::try_from(map).map_err(|error| StartError::Failed(error.to_string())))?;
    let sung = canary
        .sing(&filter, &hooks, || ring.next().map(|record| Bytes::copy_from_slice(&record)))
        .map_err(|problem| StartError::Unsupported(refusal(&problem, &path)))?;
    for hook in hooks.iter_mut().filter(|hook| sung.silent.contains(&hook.hook)) {
        hook.lacks =
            format!("it told nothing of the canary's handshakes, as if it never fired: {}", hook.without_it);
    }
    let sweeper = Sweeper::new(&mut ebpf, requests_are_seen_by(&hooks));
    let mib = MibReader::new(&options.filter, &hooks);
    let mib_at_start = Some(mib.read());
    let messages = log_messages::MessagePump::start(&mut ebpf);
    let attached = Attached { sweeper, cgroups, _messages: messages, _programs: ebpf };
    let source = RingBufferSource::new(ring, seen.into_iter().chain(sung.others).collect())
        .map_err(|error| StartError::Failed(format!("the ring buffer cannot be polled: {error}")))?;
    Ok(LiveTrace {
        drop_reasons,
        source,
        counters,
        mib,
        mib_at_start,
        hooks,
        missing_fields: resolved.missing,
        locked_down: locked,
        cpus,
        canary: sung.result,
        silent_hooks: sung.silent,
        ring_bytes,
        attached,
    })
}

/// What a person is told whose kernel we would report wrongly.
fn refusal(problem: &str, btf: &std::path::Path) -> String {
    format!(
        "the canary failed, so nothing is traced: {problem}. {} may not be of this kernel, or this kernel keeps \
         something elsewhere than we think; `--no-canary` traces all the same, and `handshake doctor --no-canary` \
         says what was found",
        btf.display()
    )
}

/// What the kernel's BTF says.
struct Known {
    resolved: ResolvedOffsets,
    drop_reasons: DropReasons,
    object: Object,
    retransmit_error_is_told: bool,
}

fn resolve(path: &std::path::Path, object: &[u8]) -> Result<Known, StartError> {
    if !path.exists() {
        return Err(StartError::Unsupported(format!(
            "{} does not exist: this kernel was built without BTF (CONFIG_DEBUG_INFO_BTF), so the places of its \
             fields are unknown; give a BTF file that was made for exactly this kernel with --btf FILE",
            path.display()
        )));
    }
    let btf = KernelBtf::from_file(path).map_err(|error| match error {
        BtfError::Unreadable { .. } => StartError::Failed(error.to_string()),
        _ => StartError::Failed(format!(
            "{}: {error}; --btf takes the BTF of exactly this kernel, and without it {BTF_OF_THE_KERNEL} is read",
            path.display()
        )),
    })?;
    let offsets = offsets::resolve(&btf).map_err(|error| StartError::Unsupported(error.to_string()))?;
    Ok(Known {
        resolved: offsets,
        drop_reasons: super::drop_reasons::of(&btf),
        object: kernel_calls::resolve(object, &btf),
        retransmit_error_is_told: btf.tracepoint_args("tcp_retransmit_skb") == Some(3),
    })
}

struct Attacher<'a> {
    btf: &'a Btf,
    choice: AttachChoice,
    locked: bool,
    /// Programs and places that are attached.
    attached: HashSet<(&'static str, Place)>,
    /// Hooks that failed and that worked, by mode.
    record: HashMap<Attach, (usize, usize)>,
}

impl<'a> Attacher<'a> {
    fn new(btf: &'a Btf, choice: AttachChoice, locked: bool) -> Self {
        Attacher { btf, choice, locked, attached: HashSet::new(), record: HashMap::new() }
    }

    fn attach(&mut self, ebpf: &mut Ebpf, hook: &'static Hook) -> HookStatus {
        let mut status = HookStatus {
            hook: hook.name,
            attached: None,
            symbols: Vec::new(),
            tried: Vec::new(),
            without_it: hook.without_it,
            lacks: String::new(),
        };
        for way in hook.ways {
            if !self.allows(way) {
                continue;
            }
            if let Some((failed, 0)) = self.record.get(&way.attach).copied()
                && failed >= FAILURES_THAT_CONDEMN_A_MODE
            {
                status
                    .tried
                    .push(format!("{}: no hook of this kind could be attached here", name(way.attach)));
                continue;
            }
            match self.attach_way(ebpf, way, &mut status) {
                Ok(()) => {
                    self.record.entry(way.attach).or_default().1 += 1;
                    status.attached = Some(way.attach);
                    status.lacks = way.lacks.to_owned();
                    if self.locked
                        && let Some((_, lacks)) =
                            LACKS_UNDER_LOCKDOWN.iter().find(|(name, _)| *name == hook.name)
                    {
                        status.lacks = (*lacks).to_owned();
                    }
                    break;
                }
                Err(problem) => {
                    self.record.entry(way.attach).or_default().0 += 1;
                    status.symbols.clear();
                    status.tried.push(problem);
                }
            }
        }
        status
    }

    fn allows(&self, way: &Way) -> bool {
        match self.choice {
            AttachChoice::Auto => true,
            AttachChoice::Fentry => way.modes.contains(&Attach::Fentry),
            AttachChoice::Kprobe => way.modes.contains(&Attach::Kprobe),
            AttachChoice::Tracepoint => way.modes.contains(&Attach::Tracepoint),
        }
    }

    fn attach_way(&mut self, ebpf: &mut Ebpf, way: &Way, status: &mut HookStatus) -> Result<(), String> {
        for program in way.programs {
            match self.attach_program(ebpf, program) {
                Ok(()) if status.symbols.contains(&program.place.symbol()) => {}
                Ok(()) => status.symbols.push(program.place.symbol()),
                Err(problem) if program.optional => status.tried.push(problem),
                Err(problem) => return Err(problem),
            }
        }
        Ok(())
    }

    fn attach_program(&mut self, ebpf: &mut Ebpf, program: &Program) -> Result<(), String> {
        if matches!(program.place, Place::SeenBy(_)) || self.attached.contains(&(program.name, program.place))
        {
            return Ok(());
        }
        let loaded = ebpf
            .program_mut(program.name)
            .ok_or_else(|| format!("the object has no program {}", program.name))?;
        self.try_place(loaded, program.place).map_err(|error| {
            format!(
                "{} on {}: {}",
                kind(program.place),
                program.place.symbol(),
                self.explain(program.place, &error)
            )
        })?;
        self.attached.insert((program.name, program.place));
        Ok(())
    }

    fn try_place(&self, program: &mut LoadedProgram, place: Place) -> Result<(), AttachProblem> {
        match place {
            Place::Fentry(function) => {
                let program: &mut FEntry = program.try_into()?;
                program.load(function, self.btf)?;
                program.attach()?;
            }
            Place::Fexit(function) => {
                let program: &mut FExit = program.try_into()?;
                program.load(function, self.btf)?;
                program.attach()?;
            }
            Place::Kprobe(function) | Place::Kretprobe(function) => {
                let program: &mut KProbe = program.try_into()?;
                unless_loaded(program.load())?;
                program.attach(function, 0)?;
            }
            Place::BtfTracepoint(tracepoint) => {
                let program: &mut BtfTracePoint = program.try_into()?;
                program.load(tracepoint, self.btf)?;
                program.attach()?;
            }
            Place::SystemCall(tracepoint) => {
                match host::tracefs() {
                    host::Tracefs::Readable => {}
                    host::Tracefs::Forbidden => return Err(AttachProblem::TracefsForbidden),
                    host::Tracefs::NotMounted => return Err(AttachProblem::NoTracefs),
                }
                let program: &mut TracePoint = program.try_into()?;
                unless_loaded(program.load())?;
                program.attach("syscalls", tracepoint)?;
            }
            Place::SockOps => {
                let root = host::cgroup_root().map_err(AttachProblem::Cgroup)?;
                let program: &mut SockOps = program.try_into()?;
                unless_loaded(program.load())?;
                // A cgroup link always stands beside other programs, and the kernel refuses the flag that would
                // say so.
                program.attach(root, CgroupAttachMode::Single)?;
            }
            Place::SeenBy(_) => {}
        }
        Ok(())
    }

    fn explain(&self, place: Place, error: &AttachProblem) -> String {
        let mut text = chain(error);
        if place == Place::SockOps && is_forbidden(error) {
            text.push_str(
                "; another sock_ops program has the root cgroup to itself (attached without BPF_F_ALLOW_MULTI): \
                 `bpftool cgroup show` names it",
            );
        }
        if lacks_cgroups(error) {
            text.push_str(
                "; this kernel (before 5.15) doesn't let programs ask for the cgroups above a thread's own, which \
                 --cgroup needs: --pid, --comm, --uid or --netns may do",
            );
        }
        if self.locked && matches!(place, Place::Kprobe(_) | Place::Kretprobe(_) | Place::SystemCall(_)) {
            text.push_str(" (lockdown=confidentiality forbids it)");
        }
        text
    }

    fn refusal(&self, hook: &Hook, status: &HookStatus) -> StartError {
        StartError::Unsupported(format!(
            "hook {} cannot be attached, and without it {}: {}",
            hook.name,
            hook.without_it,
            status.tried.join("; ")
        ))
    }

    /// `--attach kprobe` on a kernel without kprobes must not quietly trace with what is left.
    fn require_the_mode(&self, hooks: &[HookStatus]) -> Result<(), StartError> {
        let wanted = match self.choice {
            AttachChoice::Auto => return Ok(()),
            AttachChoice::Fentry => Attach::Fentry,
            AttachChoice::Kprobe => Attach::Kprobe,
            AttachChoice::Tracepoint => Attach::Tracepoint,
        };
        if hooks.iter().any(|hook| hook.attached == Some(wanted)) {
            return Ok(());
        }
        let why = hooks
            .iter()
            .find_map(|hook| hook.tried.first().map(|problem| format!("hook {}: {problem}", hook.hook)))
            .unwrap_or_else(|| "nothing was tried".to_owned());
        Err(StartError::Unsupported(format!(
            "--attach {} is not possible here: {why}; --attach auto takes what works",
            name(wanted)
        )))
    }
}

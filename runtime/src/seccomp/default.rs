//! The profile of a container that asks for the runtime's own: everything an ordinary program needs.
//!
//! The calls are those that Docker ("Seccomp security profiles for Docker") and containerd (contrib/seccomp, 2.4)
//! let through, so that an image works here as it does there. Everything else is EPERM, or ENOSYS if newer.

use super::profile::{Action, Comparison, Condition, Profile, Rule, Scope};
use super::table::Abi;
use crate::build::capabilities;

const FILES: &str = "access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 \
    faccessat faccessat2 fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat \
    fcntl fcntl64 fdatasync flock fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat \
    getcwd getdents getdents64 ioctl lchown lchown32 link linkat listmount _llseek lseek lstat lstat64 mkdir mkdirat \
    mknod mknodat name_to_handle_at newfstatat open openat openat2 readahead readlink readlinkat rename renameat \
    renameat2 rmdir stat stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs \
    truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes";

const EXTENDED_ATTRIBUTES: &str = "fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr \
    listxattr listxattrat llistxattr lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat";

const INPUT_AND_OUTPUT: &str = "io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup \
    io_submit pipe pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readv sendfile sendfile64 splice tee \
    vmsplice write writev";

const WAITING: &str = "epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait \
    epoll_wait_old eventfd eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch \
    _newselect pause poll ppoll ppoll_time64 pselect6 pselect6_time64 select";

const MEMORY: &str = "brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock \
    mlock2 mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free \
    pkey_mprotect process_mrelease remap_file_pages";

const PROCESSES: &str = "execve execveat exit exit_group fork getcpu getpgid getpgrp getpid getppid getpriority \
    getrlimit getrusage getsid get_robust_list get_thread_area gettid ioprio_get ioprio_set pidfd_open prctl \
    prlimit64 restart_syscall rseq setpgid setpriority setrlimit set_robust_list setsid set_thread_area \
    set_tid_address ugetrlimit uretprobe vfork wait4 waitid waitpid";

const SCHEDULING: &str = "sched_getaffinity sched_getattr sched_getparam sched_get_priority_max \
    sched_get_priority_min sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity \
    sched_setattr sched_setparam sched_setscheduler sched_yield";

const SIGNALS: &str = "alarm kill pidfd_send_signal rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo \
    rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack signalfd \
    signalfd4 sigprocmask sigreturn tgkill tkill";

const TIME: &str = "adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
    clock_gettime64 clock_nanosleep clock_nanosleep_time64 getitimer gettimeofday nanosleep setitimer time \
    timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 \
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times";

const IDENTITY: &str = "capget capset getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 \
    getresgid getresgid32 getresuid getresuid32 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid \
    setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid \
    setreuid32 setuid setuid32";

const NETWORK: &str = "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg \
    recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair";

const BETWEEN_PROCESSES: &str = "futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake ipc \
    mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 \
    mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget";

const SELF_RESTRAINT: &str = "landlock_add_rule landlock_create_ruleset landlock_restrict_self lsm_get_self_attr \
    lsm_list_modules lsm_set_self_attr seccomp";

const SYSTEM: &str = "getrandom sysinfo uname";

/// Since Linux 4.8 these cannot be used to leave a filter (ptrace(2), "seccomp").
const TRACING: &str = "process_vm_readv process_vm_writev ptrace";

const ON_X86_64: &str = "arch_prctl modify_ldt";
const ON_ARM: &str = "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2";

/// What a capability brings with it.
const WITH: [(&str, &str); 14] = [
    ("BPF", "bpf"),
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    ("PERFMON", "perf_event_open"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module finit_module init_module"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    ("SYS_RAWIO", "ioperm iopl"),
    ("SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYSLOG", "syslog"),
];

/// Socket families from AF_UNIX up to the first that is kept back (linux/socket.h): AF_ALG, the kernel's own
/// cryptography, which ordinary programs do not use.
const AF_ALG: u64 = 38;
/// Those after it, without AF_VSOCK (40), which reaches across network namespaces: NFC, KCM, QIPCRTR, SMC, XDP, MCTP.
const LATER_FAMILIES: [u64; 6] = [39, 41, 42, 43, 44, 45];

/// PER_LINUX and PER_LINUX32, each also with UNAME26 (linux/personality.h), and the question what is set.
const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x0002_0000, 0x0002_0008, 0xFFFF_FFFF];

/// The flags of clone(2) that make namespaces: NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NEW_NAMESPACES: u64 =
    0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000;

const EPERM: u16 = 1;
const ENOSYS: u16 = 38;

impl Profile {
    /// The runtime's default profile.
    pub fn runtime_default() -> Self {
        let mut rules = vec![
            allow(&[FILES, EXTENDED_ATTRIBUTES, INPUT_AND_OUTPUT, WAITING, MEMORY, PROCESSES, SCHEDULING]),
            allow(&[SIGNALS, TIME, IDENTITY, NETWORK, BETWEEN_PROCESSES, SELF_RESTRAINT, SYSTEM]),
            Rule { only: Scope { kernel: Some((4, 8)), ..Scope::default() }, ..allow(&[TRACING]) },
            Rule { only: on(&["amd64"]), ..allow(&[ON_X86_64]) },
            Rule { only: on(&["arm64", "arm"]), ..allow(&[ON_ARM]) },
            when("socket", Comparison::Lt, AF_ALG),
        ];
        rules.extend(LATER_FAMILIES.iter().map(|family| when("socket", Comparison::Eq, *family)));
        rules.extend(PERSONALITIES.iter().map(|value| when("personality", Comparison::Eq, *value)));
        rules.extend(WITH.iter().map(|(name, calls)| Rule { only: having(name), ..allow(&[calls]) }));
        let admin = having("SYS_ADMIN");
        rules.extend([
            Rule { except: admin.clone(), ..when("clone", Comparison::MaskedEq(NEW_NAMESPACES), 0) },
            // Its flags are in memory, where no filter looks. With this answer C libraries use clone instead.
            Rule { action: Action::Errno(ENOSYS), except: admin, ..allow(&["clone3"]) },
        ]);
        let abis_by_native =
            vec![(Abi::X86_64, vec![Abi::X86_64, Abi::X86, Abi::X32]), (Abi::Aarch64, vec![Abi::Aarch64])];
        Self { default: Action::Errno(EPERM), abis: Vec::new(), abis_by_native, rules }
    }
}

fn allow(groups: &[&str]) -> Rule {
    Rule {
        names: groups.iter().flat_map(|group| group.split_ascii_whitespace()).map(str::to_owned).collect(),
        action: Action::Allow,
        conditions: Vec::new(),
        only: Scope::default(),
        except: Scope::default(),
    }
}

/// Allowed when the first argument compares so.
fn when(name: &str, comparison: Comparison, value: u64) -> Rule {
    Rule { conditions: vec![Condition { index: 0, comparison, value }], ..allow(&[name]) }
}

fn on(arches: &[&str]) -> Scope {
    Scope { arches: arches.iter().map(|arch| (*arch).to_owned()).collect(), ..Scope::default() }
}

fn having(capability: &str) -> Scope {
    let capabilities = capabilities::bit(capability).expect("a name of the list beside the function");
    Scope { capabilities, ..Scope::default() }
}

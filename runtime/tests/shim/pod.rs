//! A pod for one test: a shim, a daemon's end of its socket, cgroups and an image, all gone when it is dropped.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cove_runtime::build::request::{
    Capabilities, ContainerSpec, Device, GroupsPolicy, Mount, MountKind, ProcessSpec, Rootfs, Tmpfs, User,
};
use cove_runtime::protocol::*;
use cove_runtime::wire::Wire;
use cove_runtime::{memfd, socket};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for a condition.
pub fn until(what: &str, is: impl FnMut() -> bool) {
    until_in(PATIENCE, what, is);
}

/// The same, for so long.
pub fn until_in(limit: Duration, what: &str, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !is() {
        assert!(Instant::now() < end, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The cgroups of one container: v1 where there is v1, else v2.
pub struct Cgroups {
    pub unified: bool,
    pub directories: Vec<PathBuf>,
}

impl Cgroups {
    /// Of v2 if asked, or if there is no other.
    fn make(name: &str, v2: bool) -> Self {
        let v1: [PathBuf; 3] =
            ["memory", "freezer", "pids"].map(|name| Path::new("/sys/fs/cgroup").join(name));
        let unified = v2 || !v1[0].exists();
        let roots = if unified { vec![v2_root()] } else { v1.to_vec() };
        let directories: Vec<PathBuf> = roots.iter().map(|root| root.join(name)).collect();
        directories.iter().for_each(|directory| fs::create_dir(directory).unwrap());
        Self { unified, directories }
    }

    fn open(&self) -> Vec<OwnedFd> {
        let open = |directory: &PathBuf| match self.unified {
            true => File::open(directory).unwrap().into(),
            false => File::options().write(true).open(directory.join("cgroup.procs")).unwrap().into(),
        };
        self.directories.iter().map(open).collect()
    }

    pub fn place(&self) -> CgroupPlace {
        CgroupPlace { unified: self.unified, count: u8::try_from(self.directories.len()).unwrap() }
    }

    pub fn members(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.directories[0].join("cgroup.procs")).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }

    fn limit_memory(&self, bytes: u64) {
        let file = if self.unified { "memory.max" } else { "memory.limit_in_bytes" };
        fs::write(self.directories[0].join(file), bytes.to_string()).unwrap();
        if self.unified {
            fs::write(self.directories[0].join("memory.swap.max"), "0").unwrap();
        }
    }

    fn freeze(&self, frozen: bool) {
        let (directory, file, value) = match (self.unified, frozen) {
            (true, true) => (0, "cgroup.freeze", "1"),
            (true, false) => (0, "cgroup.freeze", "0"),
            (false, true) => (1, "freezer.state", "FROZEN"),
            (false, false) => (1, "freezer.state", "THAWED"),
        };
        fs::write(self.directories[directory].join(file), value).unwrap();
    }

    /// `None` where v2 has no memory controller.
    fn oom_events(&self) -> Option<OwnedFd> {
        let file = if self.unified { "memory.events" } else { "memory.oom_control" };
        File::open(self.directories[0].join(file)).ok().map(Into::into)
    }
}

fn v2_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    mounts.find(|fields| fields.clone().nth(2) == Some("cgroup2")).unwrap().nth(1).unwrap().into()
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for directory in &self.directories {
            until("the cgroup to be empty", || fs::remove_dir(directory).is_ok());
        }
    }
}

/// One connection.
pub struct Daemon {
    socket: OwnedFd,
    seq: u32,
    /// What came while something else was waited for.
    pub facts: Vec<(Event, Option<OwnedFd>)>,
}

impl Daemon {
    pub fn connect(path: &Path) -> Self {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        Self { socket, seq: 0, facts: Vec::new() }
    }

    pub fn send(&mut self, request: Request, fds: &[BorrowedFd<'_>]) -> u32 {
        self.seq += 1;
        let frame = Frame { seq: self.seq, request };
        socket::send(self.socket.as_fd(), &frame.to_bytes(), fds).unwrap();
        self.seq
    }

    /// The next message; `None` at the end of the connection.
    pub fn receive(&mut self) -> Option<(Message, Option<OwnedFd>)> {
        let limit = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        assert!(poll(&mut fds, Some(&limit)).unwrap() > 0, "the shim says nothing");
        let (bytes, mut fds) = socket::receive(self.socket.as_fd()).unwrap()?;
        Some((Message::from_bytes(&bytes).unwrap(), fds.pop()))
    }

    /// Asks and waits for the answer.
    pub fn ask(&mut self, request: Request, fds: &[BorrowedFd<'_>]) -> (Reply, Option<OwnedFd>) {
        let seq = self.send(request, fds);
        loop {
            match self.receive().expect("the connection is open") {
                (Message::Reply(answer), fd) => {
                    assert_eq!(answer.seq, seq);
                    return (answer.reply, fd);
                }
                (Message::Fact(event), fd) => self.facts.push((event, fd)),
                (Message::SnapshotEnd, _) => {}
            }
        }
    }

    pub fn done(&mut self, request: Request, fds: &[BorrowedFd<'_>]) {
        assert_eq!(self.ask(request, fds).0, Reply::Done);
    }

    pub fn refused(&mut self, request: Request, fds: &[BorrowedFd<'_>]) -> Failure {
        match self.ask(request, fds).0 {
            Reply::Failed(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    /// Says who it is and takes what the shim holds.
    pub fn hello(&mut self, generation: u64) -> HelloReply {
        let (reply, _) = self.ask(Request::Hello(Hello { protocol: PROTOCOL, generation }), &[]);
        loop {
            match self.receive().unwrap() {
                (Message::Fact(event), fd) => self.facts.push((event, fd)),
                (Message::SnapshotEnd, _) => break,
                other => panic!("{other:?}"),
            }
        }
        match reply {
            Reply::Hello(hello) => hello,
            other => panic!("{other:?}"),
        }
    }

    /// The next fact, in order.
    pub fn fact(&mut self) -> (Event, Option<OwnedFd>) {
        if !self.facts.is_empty() {
            return self.facts.remove(0);
        }
        match self.receive().unwrap() {
            (Message::Fact(event), fd) => (event, fd),
            other => panic!("{other:?}"),
        }
    }

    pub fn started(&mut self) -> (Started, OwnedFd) {
        match self.fact() {
            (Event { fact: Fact::Started(started), .. }, Some(pidfd)) => (started, pidfd),
            other => panic!("{other:?}"),
        }
    }

    pub fn exited(&mut self) -> Exited {
        match self.fact().0.fact {
            Fact::Exited(exited) => exited,
            other => panic!("{other:?}"),
        }
    }
}

/// See the module's header.
pub struct Pod {
    pub daemon: Daemon,
    pub process: Child,
    pub directory: tempfile::TempDir,
    pub cgroups: Vec<Cgroups>,
    containers: u32,
    v2: bool,
    ids: Option<IdMap>,
}

impl Pod {
    /// A shim that nobody has greeted.
    pub fn bare() -> Self {
        let directory = tempfile::Builder::new().prefix("shim-").tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 8).unwrap();
        let log = File::create(directory.path().join("shim.log")).unwrap();
        // COVE_SHIM: the static one that is shipped, say.
        let shim = std::env::var_os("COVE_SHIM").unwrap_or_else(|| env!("CARGO_BIN_EXE_cove-shim").into());
        let process = Command::new(shim)
            .arg("5".repeat(64))
            .stdin(Stdio::from(listener))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let daemon = Daemon::connect(&path);
        Self { daemon, process, directory, cgroups: Vec::new(), containers: 0, v2: false, ids: None }
    }

    /// A sandbox with namespaces of its own, its holder, and with `shared_pid` its init.
    pub fn new(shared_pid: bool) -> (Self, Option<OwnedFd>) {
        Self::of(shared_pid, false, None)
    }

    /// The same, with cgroups of v2 or a user namespace if asked.
    pub fn of(shared_pid: bool, v2: bool, ids: Option<IdMap>) -> (Self, Option<OwnedFd>) {
        let mut pod = Self::bare();
        (pod.v2, pod.ids) = (v2, ids);
        assert_eq!(pod.daemon.hello(1).sandbox, "");
        let sandbox = pod.sandbox();
        let request = match pod.ids.clone() {
            None => Request::MakeSandbox(sandbox),
            Some(ids) => Request::MakeUserSandbox(UserSandbox { sandbox, ids }),
        };
        let void = pod.ids.is_none().then(|| cove_runtime::build::void::make().unwrap());
        let (reply, network) = pod.daemon.ask(request, &void.iter().map(AsFd::as_fd).collect::<Vec<_>>());
        assert_eq!(reply, Reply::Sandbox);
        assert!(network.is_some());
        let name = format!("cove-shim-test-{}-init", pod.process.id());
        pod.cgroups.push(Cgroups::make(&name, v2));
        let group = &pod.cgroups[0];
        let start = StartInit { shared_pid, shm_size: 1 << 20, cgroup: group.place() };
        let fds = group.open();
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let (reply, init) = pod.daemon.ask(Request::StartInit(start), &fds);
        match reply {
            Reply::Init(reply) => assert_eq!(reply.pid > 0, shared_pid),
            other => panic!("{other:?}\n{}", pod.said()),
        }
        (pod, init)
    }

    pub fn sandbox(&self) -> SandboxSpec {
        SandboxSpec {
            sandbox: "5".repeat(64),
            new_net: true,
            new_ipc: true,
            new_uts: true,
            hostname: "web-0".into(),
            sysctls: vec![("net.ipv4.ip_unprivileged_port_start".into(), "80".into())],
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// What the shim told its operator.
    pub fn said(&self) -> String {
        fs::read_to_string(self.directory.path().join("shim.log")).unwrap()
    }

    /// The log of a container.
    pub fn log(&self, container: &str) -> String {
        fs::read_to_string(self.directory.path().join(container).join("log")).unwrap()
    }

    /// The text of a container's log lines of one stream, without time and tag.
    pub fn output(&self, container: &str, stream: &str) -> String {
        let mut text = String::new();
        for line in self.log(container).lines() {
            let mut fields = line.splitn(4, ' ');
            let time = fields.next().unwrap();
            assert!(time.len() == 30 && time.ends_with('Z'), "{line}");
            if fields.next() == Some(stream) {
                let newline = if fields.next() == Some("F") { "\n" } else { "" };
                text.push_str(fields.next().unwrap());
                text.push_str(newline);
            }
        }
        text
    }

    /// Asks for a container that runs a shell script. Gives its id.
    pub fn start(&mut self, pid: PidMode, script: &str) -> String {
        self.start_with(pid, None, |process| {
            process.args = ["/bin/sh", "-c", script].map(OsString::from).to_vec();
        })
    }

    /// Asks for a container whose builder hangs until it is thawed.
    pub fn start_frozen(&mut self) -> String {
        let group = self.make_group(self.containers + 1);
        group.freeze(true);
        self.start_in(group, PidMode::Pod, process())
    }

    pub fn thaw(&self, container: &str) {
        self.cgroup(container).freeze(false);
    }

    /// The same, with a limit on memory in bytes, and changes to its process.
    pub fn start_with(
        &mut self,
        pid: PidMode,
        memory: Option<u64>,
        change: impl FnOnce(&mut ProcessSpec),
    ) -> String {
        let group = self.make_group(self.containers + 1);
        if let Some(bytes) = memory {
            group.limit_memory(bytes);
        }
        let mut process = process();
        change(&mut process);
        self.start_in(group, pid, process)
    }

    fn make_group(&self, number: u32) -> Cgroups {
        Cgroups::make(&self.group(&format!("container-{number}")), self.v2)
    }

    fn start_in(&mut self, group: Cgroups, pid: PidMode, process: ProcessSpec) -> String {
        let (id, reply) = self.ask_to_start(group, pid, process);
        assert_eq!(reply, Reply::Done);
        id
    }

    /// Asks for a container that the shim refuses.
    pub fn refused(&mut self, pid: PidMode) -> Failure {
        let group = self.make_group(self.containers + 1);
        match self.ask_to_start(group, pid, process()).1 {
            Reply::Failed(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    fn ask_to_start(&mut self, group: Cgroups, pid: PidMode, process: ProcessSpec) -> (String, Reply) {
        self.containers += 1;
        let id = format!("container-{}", self.containers);
        let spec = memfd::sealed("cove-test", &self.container(&id, process).to_bytes()).unwrap();
        let log: OwnedFd = File::create(self.directory.path().join(&id).join("log")).unwrap().into();
        let start = Start {
            container: id.clone(),
            pid,
            log: true,
            oom_events: group.oom_events().is_some(),
            oom_score_adj: Some(500),
            cgroup: group.place(),
        };
        let (events, procs) = (group.oom_events(), group.open());
        let mut fds = vec![spec.as_fd(), log.as_fd()];
        fds.extend(events.as_ref().map(AsFd::as_fd));
        fds.extend(procs.iter().map(AsFd::as_fd));
        let (reply, _) = self.daemon.ask(Request::Start(start), &fds);
        self.cgroups.push(group);
        (id, reply)
    }

    fn container(&self, id: &str, process: ProcessSpec) -> ContainerSpec {
        let base = self.directory.path().join(id);
        for name in ["bin", "proc", "dev/shm", "tmp"].map(|name| format!("layers/lower/{name}")) {
            fs::create_dir_all(base.join(name)).unwrap();
        }
        for name in ["upper", "work", "target"] {
            fs::create_dir_all(base.join(name)).unwrap();
        }
        if let Some(ids) = &self.ids {
            std::os::unix::fs::chown(base.join("upper"), Some(ids.host), Some(ids.host)).unwrap();
        }
        fs::copy("/bin/busybox", base.join("layers/lower/bin/busybox")).unwrap();
        for name in
            ["sh", "sleep", "cat", "echo", "hostname", "id", "dd", "ls", "head", "true", "kill", "setsid"]
        {
            std::os::unix::fs::symlink("busybox", base.join("layers/lower/bin").join(name)).unwrap();
        }
        let mount = |destination: &str, kind| Mount {
            destination: destination.into(),
            kind,
            readonly: false,
            nosuid: true,
            nodev: true,
            noexec: true,
        };
        let dev = Tmpfs { size: 1 << 20, mode: 0o755, strict_atime: false };
        ContainerSpec {
            container: id.to_owned(),
            rootfs: Rootfs {
                lower: vec![base.join("layers/lower")],
                upper: base.join("upper"),
                work: base.join("work"),
                target: base.join("target"),
                readonly: false,
                volatile: true,
            },
            new_cgroup_namespace: false,
            mounts: vec![
                mount("/proc", MountKind::Proc),
                Mount { nodev: false, ..mount("/dev", MountKind::Tmpfs(dev)) },
                mount("/dev/shm", MountKind::Shm),
            ],
            devices: vec![Device {
                path: "/dev/null".into(),
                block: false,
                major: 1,
                minor: 3,
                mode: 0o666,
                uid: 0,
                gid: 0,
            }],
            masked_paths: Vec::new(),
            readonly_paths: Vec::new(),
            process,
        }
    }

    /// Runs a shell script in a container. Gives the read ends of its stdout and stderr.
    pub fn exec(&mut self, exec: u64, container: &str, bound: bool, script: &str) -> [File; 2] {
        let mut spec = process();
        spec.args = ["/bin/sh", "-c", script].map(OsString::from).to_vec();
        let spec = memfd::sealed("cove-test", &spec.to_bytes()).unwrap();
        let null: OwnedFd = File::open("/dev/null").unwrap().into();
        let (out, stdout) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (err, stderr) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let group =
            self.cgroups.iter().find(|group| group.directories[0].ends_with(self.group(container))).unwrap();
        let procs = group.open();
        let mut fds = vec![spec.as_fd(), null.as_fd(), stdout.as_fd(), stderr.as_fd()];
        fds.extend(procs.iter().map(AsFd::as_fd));
        let exec = Exec {
            exec,
            container: container.to_owned(),
            bound,
            terminal: false,
            oom_score_adj: None,
            cgroup: group.place(),
        };
        self.daemon.done(Request::Exec(exec), &fds);
        [out.into(), err.into()]
    }

    fn group(&self, container: &str) -> String {
        format!("cove-shim-test-{}-{container}", self.process.id())
    }

    fn cgroup(&self, container: &str) -> &Cgroups {
        let name = self.group(container);
        self.cgroups.iter().find(|group| group.directories[0].ends_with(&name)).unwrap()
    }

    /// Lets a container have so many processes. False: this version of cgroups has no such limit here.
    pub fn limit_pids(&self, container: &str, limit: u32) -> bool {
        let mut files = self.cgroup(container).directories.iter().map(|group| group.join("pids.max"));
        files.find(|file| file.exists()).is_some_and(|file| fs::write(file, limit.to_string()).is_ok())
    }

    pub fn members(&self, container: &str) -> Vec<i32> {
        self.cgroup(container).members()
    }

    /// Ends the pod as a daemon does; the shim must leave nothing and end well.
    pub fn shut_down(mut self) {
        self.daemon.done(Request::Shutdown, &[]);
        assert!(self.daemon.receive().is_none());
        until("the shim to end", || self.process.try_wait().unwrap().is_some());
        assert!(self.process.wait().unwrap().success(), "{}", self.said());
        for group in &self.cgroups {
            assert_eq!(group.members(), [0; 0]);
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // A test that failed: the shim's death is the death of its children.
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        if std::thread::panicking() {
            eprintln!("the shim said: {}", self.said());
        }
        for group in &self.cgroups {
            for pid in group.members() {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
    }
}

/// A process of root with the rights of root.
pub fn process() -> ProcessSpec {
    let all = (1 << 20) - 1;
    ProcessSpec {
        args: Vec::new(),
        env: vec!["PATH=/bin".into()],
        cwd: "/".into(),
        user: User { user: String::new(), gid: None, supplemental: Vec::new(), policy: GroupsPolicy::Merge },
        capabilities: Capabilities {
            bounding: all,
            effective: all,
            permitted: all,
            inheritable: 0,
            ambient: 0,
        },
        no_new_privs: false,
        rlimits: Vec::new(),
        umask: 0o022,
        seccomp: None,
        apparmor: None,
    }
}

/// Everything until the end.
pub fn text(file: &mut File) -> String {
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

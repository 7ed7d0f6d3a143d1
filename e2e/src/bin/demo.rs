//! The demo behind `hack/up` and `hack/down`: a registry, a daemon, and a pod that crictl runs.
//!
//! `demo up [--once] [--cni]` shows the main job on this machine and leaves it running, or with `--once` takes everything
//! down again. With `--cni` the pods are on the real CNI plugins. `demo down` takes down what `demo up` left. All that is shown is what the running system answers.
//! `COVE_DEMO_TEXT` is what the pod serves, `COVE_DEMO_RANGE` the range that pods get their addresses from.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cove_e2e::cni::{self, Before, Cni};
use cove_e2e::crictl::Crictl;
use cove_e2e::daemon::{self, Place};
use cove_e2e::image::{self, Layer};
use cove_e2e::registry::Registry;
use cove_e2e::sysctl::Saved;
use cove_e2e::{Outcome, wait};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};

/// The bridge of the demo's pods on CNI.
const BRIDGE: &str = "demobr0";

/// How long the pod's server may take to answer for the first time, and a process to end.
const LIMIT: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["up", ref options @ ..] if options.iter().all(|option| ["--once", "--cni"].contains(option)) => {
            let has = |option| options.contains(&option);
            up(has("--cni")).and_then(|()| if has("--once") { down() } else { Ok(()) })
        }
        ["down"] => down(),
        _ => Err("usage: demo up [--once] [--cni] | demo down".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Where the demo lives; apart from a Cove that may be installed here.
fn place() -> Place {
    Place {
        instance: "demo".into(),
        root: "/var/lib/cove-demo".into(),
        state: "/run/cove-demo".into(),
        range: std::env::var("COVE_DEMO_RANGE").unwrap_or_else(|_| "10.85.0.0/16".into()),
        programs: daemon::programs(),
        hosts: None,
        images: String::new(),
        cni: None,
    }
}

/// Pids of what `up` left running, a line each: `NAME PID START_TIME`.
fn pid_file() -> PathBuf {
    place().root.join("demo.pids")
}

/// Settings of the machine as they were before `up`.
fn settings_file() -> PathBuf {
    place().root.join("demo.sysctls")
}

/// Firewall tables and links as they were before `up`.
fn before_file() -> PathBuf {
    place().root.join("demo.before")
}

/// The real plugins, and a configuration for them.
fn cni(place: &Place) -> Outcome<Cni> {
    let configurations = place.root.join("net.d");
    fs::create_dir_all(&configurations)?;
    let ipam = cni::host_local(&place.root.join("leases"), &[&place.range]);
    let text = cni::list("1.0.0", "demo", &[cni::bridge(BRIDGE, &ipam), cni::portmap()]);
    write(&configurations.join("10-demo.conflist"), &text)?;
    println!("{}", configurations.join("10-demo.conflist").display());
    Ok(Cni { configurations, plugins: vec![cni::plugins()], seconds: 60 })
}

fn up(with_cni: bool) -> Outcome {
    if pid_file().exists() {
        down()?;
    }
    let outcome = show(with_cni);
    if outcome.is_err() {
        let tail = place().tail();
        // The first error is the one to tell.
        if let Err(error) = down() {
            eprintln!("demo: and taking down failed: {error}");
        }
        eprintln!("--- the end of the daemon's log:\n{tail}");
    }
    outcome
}

fn show(with_cni: bool) -> Outcome {
    let mut place = place();
    fs::create_dir_all(&place.root)?;
    write(&settings_file(), &serde_json::to_value(Saved::now()?)?)?;
    write(&before_file(), &serde_json::to_value(Before::now()?)?)?;
    if with_cni {
        say("A network configuration for the real CNI plugins");
        place.cni = Some(cni(&place)?);
    }
    say("A registry on loopback, and an image of four layers in it");
    let registry = Registry::start(&place.root.join("registry"))?;
    let reference = registry.push("demo/web", "1", &demo_image()?)?;
    remember("registry", registry.leave())?;
    println!("{reference}");

    say("cove");
    let began = Instant::now();
    let mut daemon = place.start()?;
    remember("cove", Some(daemon.pid()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answered = runtime.block_on(daemon.connect()).map(drop);
    daemon.leave();
    answered?;
    println!("answers on {} after {:?}", place.socket().display(), began.elapsed());

    let crictl = Crictl::new(&place.socket());
    println!("{}", crictl.run(&["version"])?);
    say("crictl pull");
    let began = Instant::now();
    println!("{}\nin {:?}", crictl.run(&["pull", &reference])?, began.elapsed());
    println!("{}", crictl.run(&["images"])?);

    say("A pod with two containers, and a second pod that asks it");
    let web = Pod::run(&crictl, &place, "web")?;
    let server = web.start(&crictl, "server", &reference, &["httpd", "-f", "-p", "80", "-h", "/www"])?;
    let ticker = "while :; do echo tick $(cat /www/index.html); sleep 1; done";
    let ticking = web.start(&crictl, "ticker", &reference, &["sh", "-c", ticker])?;
    let client = Pod::run(&crictl, &place, "client")?;
    let idle = client.start(&crictl, "client", &reference, &["sleep", "1000000"])?;
    println!("{}", crictl.run(&["pods"])?);
    println!("{}", crictl.run(&["ps"])?);

    let address = web.address(&crictl)?;
    say(&format!("The pod's address is {address}; asked from the host"));
    print!("{}", ask(&address)?);
    say("and from the second pod (crictl exec -s)");
    let url = format!("http://{address}/");
    println!("{}", crictl.run(&["exec", "-s", &idle, "wget", "-q", "-O", "-", &url])?);
    say("crictl exec -s in the server");
    println!("{}", crictl.run(&["exec", "-s", &server, "sh", "-c", "hostname; id; cat /etc/resolv.conf"])?);
    say("crictl logs of the ticker");
    let log = wait::until("the ticker's first line", LIMIT, || {
        Ok(Some(crictl.run(&["logs", &ticking])?).filter(|text| !text.is_empty()))
    })?;
    println!("{log}");
    say("cove net ls: how the pods are attached");
    let list = place.programs.join("cove");
    let config = place.config_file();
    print!("{}", cni::run(&list.to_string_lossy(), &["--config", &config.to_string_lossy(), "net", "ls"])?);
    say("How long each step of the pod's start took");
    steps("sandbox", &crictl.run(&["inspectp", &web.id])?)?;
    steps("container", &crictl.run(&["inspect", &server])?)?;
    say("It runs on. Try");
    for words in
        [&["ps"][..], &["exec", "-s", &server, "ps"], &["logs", "-f", &ticking], &["inspectp", &web.id]]
    {
        println!("  {}", crictl.line(words));
    }
    println!("  curl {url}\nhack/down takes it down.");
    Ok(())
}

fn say(title: &str) {
    println!("\n== {title}");
}

fn demo_image() -> Outcome<image::Image> {
    let text = std::env::var("COVE_DEMO_TEXT").unwrap_or_else(|_| "hello from a pod that Cove made".into());
    image::build(
        vec![
            image::busybox()?,
            image::accounts(),
            Layer::new().dir("www", 0o755),
            Layer::new().file("www/index.html", 0o644, format!("{text}\n")),
        ],
        json!({"Env": ["PATH=/bin"], "Cmd": ["httpd", "-f", "-p", "80", "-h", "/www"]}),
    )
}

/// A pod by crictl, which reads its configurations from files.
struct Pod {
    id: String,
    directory: PathBuf,
    config: PathBuf,
}

impl Pod {
    fn run(crictl: &Crictl, place: &Place, name: &str) -> Outcome<Self> {
        let directory = place.root.join("pods").join(name);
        fs::create_dir_all(&directory)?;
        let config = directory.join("pod.json");
        let value = json!({
            "metadata": {"name": name, "uid": format!("{name}-{}", std::process::id()), "namespace": "demo", "attempt": 1},
            "hostname": name,
            "log_directory": directory.join("logs"),
            "linux": {},
        });
        write(&config, &value)?;
        let id = crictl.run(&["runp", &config.to_string_lossy()])?;
        Ok(Self { id, directory, config })
    }

    fn start(&self, crictl: &Crictl, name: &str, image: &str, command: &[&str]) -> Outcome<String> {
        let config = self.directory.join(format!("{name}.json"));
        let value = json!({
            "metadata": {"name": name},
            "image": {"image": image},
            "command": command,
            "log_path": format!("{name}.log"),
            "linux": {},
        });
        write(&config, &value)?;
        let id =
            crictl.run(&["create", &self.id, &config.to_string_lossy(), &self.config.to_string_lossy()])?;
        crictl.run(&["start", &id])?;
        Ok(id)
    }

    fn address(&self, crictl: &Crictl) -> Outcome<String> {
        let status: Value = serde_json::from_str(&crictl.run(&["inspectp", &self.id])?)?;
        let address = status["status"]["network"]["ip"].as_str().ok_or("the pod has no address")?;
        Ok(address.to_owned())
    }
}

fn write(path: &Path, value: &Value) -> Outcome {
    Ok(fs::write(path, serde_json::to_vec_pretty(value)?)?)
}

/// What the pod's server answers to the host.
fn ask(address: &str) -> Outcome<String> {
    let mut stream = wait::until("the pod's server", LIMIT, || Ok(TcpStream::connect((address, 80)).ok()))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .ok_or_else(|| format!("no body: {answer}").into())
}

/// Prints the steps that verbose status tells.
fn steps(what: &str, inspect: &str) -> Outcome {
    let status: Value = serde_json::from_str(inspect)?;
    let steps = status["info"]["steps"].as_array().ok_or("verbose status tells no steps")?;
    for step in steps {
        let name = step["step"].as_str().ok_or("a step without a name")?;
        let time = step["milliseconds"].as_f64().ok_or("a step without a time")?;
        println!("{what:>10} {name:<12} {time:>8.3} ms");
    }
    Ok(())
}

fn remember(name: &str, pid: Option<u32>) -> Outcome {
    let pid = pid.ok_or("a process without a pid")?;
    let mut file = fs::OpenOptions::new().append(true).create(true).open(pid_file())?;
    Ok(writeln!(file, "{name} {pid} {}", start_time(pid)?)?)
}

/// With the pid, what tells a process from a later one (proc_pid_stat(5), field 22).
fn start_time(pid: u32) -> Outcome<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').ok_or("a stat without a name")?.1;
    Ok(fields.split_ascii_whitespace().nth(19).ok_or("a stat without a start time")?.to_owned())
}

fn down() -> Outcome {
    let place = place();
    let crictl = Crictl::new(&place.socket());
    if place.socket().exists() {
        for pod in crictl.run(&["pods", "-q"]).unwrap_or_default().lines() {
            crictl.run(&["rmp", "-f", pod])?;
        }
    }
    for line in fs::read_to_string(pid_file()).unwrap_or_default().lines().rev() {
        let [name, pid, started] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
        let number: u32 = pid.parse()?;
        // Gone, or another process by now.
        if start_time(number).ok().as_deref() != Some(started) {
            continue;
        }
        let pid = Pid::from_raw(i32::try_from(number)?).ok_or("pid 0")?;
        kill_process(pid, Signal::TERM)?;
        wait::until(&format!("{name} to end"), LIMIT, || {
            // A child of this process stays until it is waited for.
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
            Ok(test_kill_process(pid).is_err().then_some(()))
        })?;
    }
    if let Ok(before) = fs::read(before_file()) {
        serde_json::from_slice::<Before>(&before)?.restore(BRIDGE)?;
    }
    if let Ok(saved) = fs::read(settings_file()) {
        serde_json::from_slice::<Saved>(&saved)?.restore()?;
    }
    for directory in [&place.root, &place.state] {
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("remove {}: {error}", directory.display()).into());
            }
            _ => {}
        }
    }
    Ok(())
}

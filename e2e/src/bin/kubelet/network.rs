//! The network of pods, of the host, and names.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use cove_e2e::Outcome;
use serde_json::json;

use crate::ground::{Ground, IDLE, Trial};
use crate::node::free_port;

cases!(
    speaks_with_other_pods,
    shares_a_network_in_a_pod,
    serves_a_port_of_the_host,
    uses_the_network_of_the_host,
    writes_names_as_it_is_told,
);

/// What a web server answers, if it does.
pub(crate) fn fetch(address: SocketAddr) -> Outcome<Option<String>> {
    let limit = Duration::from_secs(2);
    let Ok(mut stream) = TcpStream::connect_timeout(&address, limit) else { return Ok(None) };
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    Ok(stream.read_to_string(&mut text).ok().map(|_| text))
}

fn web(port: u16, text: &str) -> String {
    format!("mkdir -p /www; echo {text} >/www/index.html; httpd -p {port} -h /www; {IDLE}")
}

fn serves(ground: &Ground, address: SocketAddr, text: &str) -> Outcome {
    ground.until(&format!("{address} to serve"), || {
        Ok(fetch(address)?.filter(|answer| answer.contains(text)).map(drop))
    })
}

fn speaks_with_other_pods(ground: &Ground) -> Outcome<Trial> {
    let server = ground.simple("web", &web(80, "of a pod"), json!({}), json!({}))?;
    let client = ground.simple("client", IDLE, json!({}), json!({}))?;
    Trial::new(vec![server, client], |ground| {
        let server = ground.ready("web")?;
        ground.ready("client")?;
        let ip = server["status"]["podIP"].as_str().ok_or("no address")?.to_owned();
        serves(ground, SocketAddr::new(ip.parse()?, 80), "of a pod")?;
        let answer = ground.exec("client", "main", &["wget", "-qO-", &format!("http://{ip}/")])?;
        ensure_eq!(answer, "of a pod\n");
        Ok(())
    })
}

fn shares_a_network_in_a_pod(ground: &Ground) -> Outcome<Trial> {
    let server = ground.container("server", &web(8080, "beside"), json!({}));
    let script = format!(
        "while ! wget -qO /witness/facts http://127.0.0.1:8080/ 2>/dev/null; do sleep 0.1; done
        echo end >>/witness/facts; {IDLE}"
    );
    let client = ground.container("client", &script, json!({}));
    let pod = ground.pod("beside", &[server, client], json!({}))?;
    Trial::new(vec![pod], |ground| {
        ensure_eq!(ground.told("beside", "facts")?, "beside\n");
        Ok(())
    })
}

fn serves_a_port_of_the_host(ground: &Ground) -> Outcome<Trial> {
    let port = free_port()?;
    let ports = json!([{"containerPort": 80, "hostPort": port}]);
    let pod = ground.simple("host-port", &web(80, "by the host"), json!({"ports": ports}), json!({}))?;
    Trial::new(vec![pod], move |ground| {
        serves(ground, SocketAddr::from(([127, 0, 0, 1], port)), "by the host")
    })
}

fn uses_the_network_of_the_host(ground: &Ground) -> Outcome<Trial> {
    let port = free_port()?;
    let script = web(port, "on the host");
    let pod = ground.simple("host-net", &script, json!({}), json!({"hostNetwork": true}))?;
    Trial::new(vec![pod], move |ground| {
        serves(ground, SocketAddr::from(([127, 0, 0, 1], port)), "on the host")?;
        let pod = ground.ready("host-net")?;
        ensure_eq!(pod["status"]["podIP"], pod["status"]["hostIP"]);
        Ok(())
    })
}

fn writes_names_as_it_is_told(ground: &Ground) -> Outcome<Trial> {
    let script = format!(
        "{{ hostname; grep -c 'a.example' /etc/hosts; cat /etc/resolv.conf; echo end; }} >/witness/facts; {IDLE}"
    );
    let dns = json!({"nameservers": ["192.0.2.53"], "searches": ["cases.example"], "options": [{"name": "ndots", "value": "3"}]});
    let spec = json!({
        "hostname": "called-so", "dnsPolicy": "None", "dnsConfig": dns,
        "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["a.example"]}],
    });
    let pod = ground.simple("names", &script, json!({}), spec)?;
    Trial::new(vec![pod], |ground| {
        let expected = "called-so\n1\nsearch cases.example\nnameserver 192.0.2.53\noptions ndots:3\n";
        ensure_eq!(ground.told("names", "facts")?, expected);
        Ok(())
    })
}

//! The way to the API server and who asks there: certificates that are replaced, proxies, several addresses, several contexts.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lab::kubernetes::{ApiServer, Faults, Kubeconfig, Release};
use lab::{Process, bin, eventually};
use serde_json::Value;

use crate::proxy::{Nodes, SOON};
use crate::{KUBECONFIG, answered_by, in_reach, lost, service, slice, start};

/// A machine of the API server, with the ones that ask for nothing else than the Service `web`.
fn published(server: &ApiServer) -> Result<()> {
    server.put(&service("web", "192.168.0.10"))?;
    server.put(&slice(server.release(), &["172.7.21.2"]))?;
    Ok(())
}

pub(crate) fn certificates_that_are_replaced_in_their_files_are_used_without_a_restart() -> Result<()> {
    let nodes = Nodes::start()?;
    let mut server = ApiServer::start_with(nodes.outside()?, Release::V1_20, &[])?;
    published(&server)?;
    let node = nodes.node()?;
    let issue = |user: &str| -> Result<()> {
        let (certificate, key) = server.certificate(user, &[])?;
        node.write("/etc/client.crt", certificate)?;
        node.write("/etc/client.key", key)
    };
    // kube-proxy's user, whom every cluster gives its role.
    issue("system:kube-proxy")?;
    node.write("/etc/ca.crt", server.authority_pem())?;
    let kubeconfig = server.kubeconfig().certificate_files("/etc/client.crt", "/etc/client.key");
    let proxy = start(&nodes, &kubeconfig.authority_file("/etc/ca.crt"))?;
    answered_by(&nodes, &["172.7.21.2"])?;
    // Another authority, as before one is rotated in the kubeconfig's file: the server is not believed.
    let (foreign, _) = server.certificate("nobody", &[])?;
    node.write("/etc/ca.crt", foreign)?;
    issue("stranger")?;
    server.stop()?;
    server.start_again()?;
    lost(&nodes, "certificate")?;
    // The authority is right again, and whoever asks now is somebody else.
    node.write("/etc/ca.crt", server.authority_pem())?;
    lost(&nodes, "User \"stranger\" cannot")?;
    let (certificate, key) = server.certificate("system:kube-proxy", &[])?;
    node.write("/etc/client.crt", certificate)?;
    node.write("/etc/client.key", key)?;
    in_reach(&nodes)?;
    server.put(&slice(Release::V1_20, &["172.7.22.3"]))?;
    answered_by(&nodes, &["172.7.22.3"])?;
    ensure!(proxy.log().contains("the credentials for the API server were replaced"), "{}", proxy.log());
    Ok(())
}

/// Debian's tinyproxy on the outside machine.
fn tinyproxy(nodes: &Nodes) -> Result<Process> {
    let outside = nodes.outside()?;
    outside
        .write("/etc/tinyproxy.conf", "Port 8888\nListen 10.4.7.200\nLogLevel Connect\nTimeout 600\nMaxClients 50\n")?;
    let proxy = outside.command("tinyproxy").args(["-d", "-c", "/etc/tinyproxy.conf"]).start("tinyproxy")?;
    eventually(SOON, || -> Result<()> {
        outside.within(|| std::net::TcpStream::connect("10.4.7.200:8888").map(drop))??;
        Ok(())
    })?;
    Ok(proxy)
}

pub(crate) fn the_api_server_is_reached_through_a_proxy_of_the_environment() -> Result<()> {
    let (server, nodes) = (ApiServer::shared(Release::V1_20)?, Nodes::start()?);
    published(&server)?;
    let node = nodes.node()?;
    let at: SocketAddr = "10.4.7.21:6443".parse()?;
    let faults = Faults::start_at(&server, node, at)?;
    node.write(KUBECONFIG, faults.kubeconfig().to_string())?;
    let begin = |no_proxy: &str| {
        let command = node.command(bin("ipvs-proxy")?).arg(format!("--kubeconfig={KUBECONFIG}"));
        let command = command.env("HTTPS_PROXY", "http://10.4.7.200:8888").env("NO_PROXY", no_proxy);
        command.args(["--proxy-mode=nftables", "--cluster-cidr=172.7.0.0/16"]).start("ipvs-proxy")
    };
    let tunnel = tinyproxy(&nodes)?;
    let proxy = begin("192.168.0.0/16")?;
    proxy.wait_for_line("ready", SOON)?;
    answered_by(&nodes, &["172.7.21.2"])?;
    let asked = tunnel.log().matches("CONNECT 10.4.7.21:6443").count();
    ensure!(asked > 0, "{}", tunnel.log());
    // Without the proxy there is no way, and none is taken beside it.
    tunnel.kill()?;
    lost(&nodes, "10.4.7.200")?;
    answered_by(&nodes, &["172.7.21.2"])?;
    let again = tinyproxy(&nodes)?;
    in_reach(&nodes)?;
    server.put(&slice(Release::V1_20, &["172.7.22.3"]))?;
    answered_by(&nodes, &["172.7.22.3"])?;
    ensure!(proxy.terminate(SOON)?.success());
    again.kill()?;
    let direct = begin("10.4.7.0/24")?;
    direct.wait_for_line("ready", SOON).context("NO_PROXY has the server's network")?;
    Ok(())
}

/// A kubeconfig of both, each a context of its own, of which one is the current one.
fn contexts(first: &Kubeconfig, second: &Kubeconfig, current: &str) -> Result<String> {
    let mut whole: Value = serde_json::from_str(&first.to_string())?;
    let second: Value = serde_json::from_str(&second.to_string())?;
    for list in ["clusters", "users", "contexts"] {
        let mut other = second[list][0].clone();
        other["name"] = "second".into();
        if list == "contexts" {
            other["context"] = serde_json::json!({"cluster": "second", "user": "second"});
        }
        whole[list].as_array_mut().context("no list")?.push(other);
    }
    whole["current-context"] = current.into();
    Ok(whole.to_string())
}

pub(crate) fn a_server_of_several_addresses_and_one_of_another_context_take_over() -> Result<()> {
    let (server, nodes) = (ApiServer::shared(Release::V1_20)?, Nodes::start()?);
    published(&server)?;
    let node = nodes.node()?;
    // Of three addresses of the name one is nobody's.
    node.write("/etc/hosts", "127.0.0.1 localhost\n10.4.7.99 api.lab\n10.4.7.21 api.lab\n10.4.7.22 api.lab\n")?;
    let own = Faults::start_at(&server, node, "10.4.7.21:6443".parse()?)?;
    let other = Faults::start_at(&server, nodes.cluster.host("hdss7-22")?, "10.4.7.22:6443".parse()?)?;
    let _proxy = start(&nodes, &own.kubeconfig().server("https://api.lab:6443"))?;
    answered_by(&nodes, &["172.7.21.2"])?;
    for (gone, stays, pod) in [(&own, &other, "172.7.22.3"), (&other, &own, "172.7.21.3")] {
        gone.refuse()?;
        server.put(&slice(Release::V1_20, &[pod]))?;
        answered_by(&nodes, &[pod])?;
        in_reach(&nodes)?;
        ensure!(!stays.seen().is_empty(), "{pod}");
        gone.heal()?;
    }
    // Of a kubeconfig the current context counts, when the file changes as well.
    let third = Faults::start_at(&server, node, "10.4.7.21:7443".parse()?)?;
    own.refuse()?;
    other.refuse()?;
    let first = own.kubeconfig().server("https://api.lab:6443");
    lost(&nodes, "api.lab")?;
    node.write(KUBECONFIG, contexts(&first, &third.kubeconfig(), "lab")?)?;
    server.put(&slice(Release::V1_20, &["172.7.22.2"]))?;
    lost(&nodes, "api.lab")?;
    node.write(KUBECONFIG, contexts(&first, &third.kubeconfig(), "second")?)?;
    in_reach(&nodes)?;
    answered_by(&nodes, &["172.7.22.2"])
}

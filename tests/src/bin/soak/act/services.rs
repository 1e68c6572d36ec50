//! Services and their endpoints, written with `ipvs-proxy apply` and `delete` as an operator does.
//!
//! Invariant: an endpoint is a Pod that runs, but for those that were lost a moment ago.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use lab::bin;

use super::Heal;
use crate::bounds::{CHANGE, STORE, scale};
use crate::ledger::Element;
use crate::paths::{OUTSIDE, PORT};
use crate::shared::Service;
use crate::world::World;

const CAUSE: &str = "Service changed";

/// Services that stay, with the number of their endpoints at a quiet point.
pub(crate) const STANDING: [(&str, usize); 2] = [("s1", 3), ("s2", 2)];

/// Draws endpoints anew for one.
pub(super) fn change_some(world: &mut World) -> Result<(String, Option<Heal>)> {
    let names: Vec<String> = world.shared.lock().services.keys().cloned().collect();
    let name = world.choose(names).context("a Service")?;
    let count = world.random.usize(1..=4);
    let endpoints: BTreeSet<String> = draw(world, count).into_iter().collect();
    publish(world, &name, endpoints.clone())?;
    Ok((format!("{name}: {endpoints:?}"), None))
}

pub(super) fn add(world: &mut World) -> Result<(String, Option<Heal>)> {
    let taken: Vec<String> = world.shared.lock().services.keys().cloned().collect();
    let name = (1..).map(|number| format!("s{number}")).find(|name| !taken.contains(name)).unwrap_or_default();
    let endpoints: BTreeSet<String> = draw(world, 2).into_iter().collect();
    publish(world, &name, endpoints.clone())?;
    Ok((format!("{name}: {endpoints:?}"), None))
}

pub(super) fn remove_some(world: &mut World) -> Result<(String, Option<Heal>)> {
    let standing = |name: &String| STANDING.iter().any(|(standing, _)| standing == name);
    let names = world.shared.lock().services.keys().filter(|name| !standing(name)).cloned().collect();
    let Some(name) = world.choose(names) else { return Ok(("none to remove".to_owned(), None)) };
    remove(world, &name)?;
    Ok((name, None))
}

pub(crate) fn remove(world: &mut World, name: &str) -> Result<()> {
    {
        let mut state = world.shared.lock();
        let before = state.services.remove(name).map(|service| service.endpoints).unwrap_or_default();
        state.previous.entry(name.to_owned()).or_default().extend(before);
        state.ledger.forget(&Element::Service(name.to_owned()));
    }
    let (service, slice) = (format!("service/{name}"), format!("endpointslice/{name}-1"));
    operate(world, &["delete", &service, &slice], "")
}

/// Runs `ipvs-proxy` where the operator is, a machine whose cable nobody pulls; again while it fails: a member that was killed may have led the others, which choose another.
fn operate(world: &World, arguments: &[&str], input: &str) -> Result<()> {
    let (operator, program) = (world.cluster.host(OUTSIDE)?, bin("ipvs-proxy")?);
    let endpoints = world.etcd.endpoints();
    let command = || operator.command(&program).args(arguments).args(["--etcd-endpoints", &endpoints]).input(input);
    lab::eventually(STORE.mul_f64(scale()), || command().run()).map(drop)
}

/// Endpoints by chance.
pub(crate) fn draw(world: &mut World, count: usize) -> Vec<String> {
    let mut pods = world.pods(None);
    world.random.shuffle(&mut pods);
    pods.truncate(count);
    pods
}

/// Writes a Service with these endpoints.
pub(crate) fn publish(world: &mut World, name: &str, endpoints: BTreeSet<String>) -> Result<()> {
    let element = [Element::Service(name.to_owned())];
    let manifest = {
        let now = world.shared.now();
        let mut state = world.shared.lock();
        state.ledger.hold(CAUSE, &element, now);
        let number = number(name)?;
        let (address, node_port) = (address(number), node_port(number));
        let before = state.services.get(name).map(|service| service.endpoints.clone()).unwrap_or_default();
        state.previous.entry(name.to_owned()).or_default().extend(before);
        let addresses: Vec<String> =
            endpoints.iter().filter_map(|pod| Some(state.stations.get(pod)?.address()?.to_string())).collect();
        state.services.insert(name.to_owned(), Service { address, node_port, endpoints });
        manifest(name, number, &addresses)
    };
    operate(world, &["apply", "-f", "-"], &manifest)?;
    let now = world.shared.now();
    world.shared.lock().ledger.release(CAUSE, &element, CHANGE, now);
    Ok(())
}

/// Takes a Pod out of all Services, as it is about to go.
pub(crate) fn withdraw(world: &mut World, pod: &str) -> Result<()> {
    for (name, endpoints) in with_endpoint(world, pod) {
        let mut left: BTreeSet<String> = endpoints.into_iter().filter(|endpoint| endpoint != pod).collect();
        if left.is_empty() {
            let others: Vec<String> = world.pods(None).into_iter().filter(|other| other != pod).collect();
            left.extend(world.choose(others));
        }
        publish(world, &name, left)?;
    }
    Ok(())
}

/// The Services that a Pod is an endpoint of.
pub(crate) fn with_endpoint(world: &World, pod: &str) -> Vec<(String, BTreeSet<String>)> {
    let state = world.shared.lock();
    let services = state.services.iter().filter(|(_, service)| service.endpoints.contains(pod));
    services.map(|(name, service)| (name.clone(), service.endpoints.clone())).collect()
}

fn number(name: &str) -> Result<u8> {
    name.trim_start_matches('s').parse().with_context(|| format!("the number of {name}"))
}

/// The Service `s3` is at 192.168.0.13.
fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 168, 0, 10 + number], PORT))
}

/// And at port 30013 of each node.
fn node_port(number: u8) -> u16 {
    30_010 + u16::from(number)
}

fn manifest(name: &str, number: u8, endpoints: &[String]) -> String {
    let (ip, node_port) = (address(number).ip(), node_port(number));
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: NodePort, clusterIP: {ip}, \
         ports: [{{name: tcp, port: 80, nodePort: {node_port}}}, {{name: udp, port: 80, protocol: UDP, nodePort: {node_port}}}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         ports: [{{name: tcp, port: 80}}, {{name: udp, port: 80, protocol: UDP}}]\nendpoints:\n"
    );
    for endpoint in endpoints {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "- addresses: [{endpoint}]");
    }
    text
}

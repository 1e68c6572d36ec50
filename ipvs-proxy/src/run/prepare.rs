//! What is done once for the process and for the host, before the daemon begins or instead of it.
//!
//! Invariant: what cannot be done is named, all of it at once where nothing else follows.

use std::collections::BTreeMap;
use std::net::TcpListener;

use anyhow::Context;
use daemon::http::Address;
use daemon::lifecycle::Exit;
use daemon::terminal;
use kernel::ipvs::Ipvs;
use netstate::SysctlKey;

use super::path::Opened;
use super::traffic::ESTIMATION;
use super::{addresses, needs, path};
use crate::command::config::{Config, Networks};
use crate::command::settings::fields::path as setting;
use crate::dataplane::{Guards, Mode};
use crate::plan::pods::PodsOfFamilies;

/// Where this process's score is (proc(5)).
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// Gives this process its score, and tries the addresses of HTTP where failing to bind one is fatal.
///
/// # Errors
/// When an address cannot be bound and must.
pub(super) fn process(config: &Config) -> anyhow::Result<()> {
    score(config);
    if config.settings.text(setting::HARD_FAIL) == "true" {
        for (address, _) in &config.places.listeners {
            if let Address::Tcp(address) = address {
                TcpListener::bind(address).with_context(|| format!("bind {address}, which must not fail"))?;
            }
        }
    }
    Ok(())
}

/// Gives this process its score.
pub(super) fn score(config: &Config) {
    let score = config.settings.text(setting::OOM_SCORE);
    if score.is_empty() {
        return;
    }
    if let Err(error) = std::fs::write(OOM_SCORE, score) {
        let own = std::fs::read_to_string(OOM_SCORE).unwrap_or_default();
        if is_spared(&own) {
            tracing::info!(score = own.trim(), "the score of this process stays as whoever started it gave it");
        } else {
            tracing::warn!(%error, score, "the score of this process cannot be set, which takes CAP_SYS_RESOURCE");
        }
    }
}

/// Whether a process with this score is spared: kubelet gives Pods of the class system-node-critical a low one.
fn is_spared(score: &str) -> bool {
    score.trim().parse::<i32>().is_ok_and(|score| score < 0)
}

/// Gives IPVS the time-outs that are asked for, tries the scheduler, and stops estimates.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn ipvs(ipvs: &mut Ipvs, config: &Config) -> anyhow::Result<()> {
    check_scheduler(ipvs, config)?;
    addresses::set_timeouts(ipvs, config.timeouts)?;
    stop_estimating();
    Ok(())
}

/// Stops the estimates of rates (Linux 6.2), which cost time every two seconds. Once at the start: whoever wants them turns them on again, as
/// this program does while somebody asks what virtual servers have counted ([`super::traffic`]).
fn stop_estimating() {
    let Ok(key) = ESTIMATION.parse::<SysctlKey>() else { return };
    // Older kernels have not the parameter.
    let runs = kernel::sysctl::read(&key).is_ok_and(|value| value == "1");
    if runs && let Err(error) = kernel::sysctl::write(&key, "0") {
        tracing::info!(error = %kernel::Chain(&error), "rates of virtual servers go on being estimated");
    }
}

/// Refuses a scheduler that no virtual server could be made with.
fn check_scheduler(ipvs: &mut Ipvs, config: &Config) -> anyhow::Result<()> {
    let name = &config.scheduler.name;
    match ipvs.has_scheduler(name) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let accepted = format!("a scheduler of this kernel; load the module ip_vs_{name} if there is one");
            let field = config.settings.name(setting::SCHEDULER);
            Err(cluster::Problem::new(field, format!("{name:?} is unknown to IPVS"), accepted).into())
        }
        Err(error) => {
            tracing::warn!(error = %kernel::Chain(&error), "whether the kernel has the scheduler cannot be asked");
            Ok(())
        }
    }
}

/// The kernel parameters that are asked for, on a kernel of this release.
pub(super) fn parameters(config: &Config, release: &str, mode: Mode) -> BTreeMap<SysctlKey, String> {
    let families: Vec<_> = pods(config).present().map(|(family, _)| family).collect();
    let mut parameters = match mode {
        Mode::Ipvs => addresses::sysctls(release, &families),
        Mode::Nftables => addresses::sysctls_without_ipvs(&families),
    };
    parameters.extend(
        config
            .parameters
            .iter()
            .filter(|(key, value)| can_have(key, value))
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    parameters
}

/// Whether a parameter that the settings ask for can get its value on this node; where it cannot, it is said and stays as it is.
fn can_have(key: &SysctlKey, value: &str) -> bool {
    let is_of_machine = kernel::sysctl::is_of_machine(key);
    if is_of_machine && kernel::sysctl::read(key).is_ok_and(|now| now != value) {
        tracing::warn!(%key, wanted = value, "a parameter of the whole machine stays as it is: this is not the machine's own network; set it there");
    }
    !is_of_machine
}

/// How clients are known for Pods, in the families that are asked for and that this kernel has.
pub(super) fn pods(config: &Config) -> PodsOfFamilies {
    config.facts.pods.clone().map(|family, pods| pods.filter(|_| addresses::is_supported(family)))
}

/// The Pod networks of the families that this kernel has.
pub(super) fn networks(config: &Config) -> Networks {
    config.pods.map(|family, pods| pods.filter(|_| addresses::is_supported(family)))
}

/// What the settings have dropped for the good of others.
pub(super) fn guards(config: &Config) -> Guards {
    let is = |key, text| config.settings.text(key) == text;
    Guards { invalid: !is(setting::BE_LIBERAL, "true"), loopback: !is(setting::LOCALHOST, "false") }
}

/// Does what takes the rights of the whole host, and nothing else.
///
/// # Errors
/// When the kernel has not the data path that was asked for, or refuses.
pub(crate) fn init_only(config: &Config) -> anyhow::Result<Exit> {
    let Opened { mode, mut ipvs } = path::open(config.mode)?;
    needs::check(mode)?;
    if let Some(ipvs) = ipvs.as_mut().filter(|_| mode == Mode::Ipvs) {
        self::ipvs(ipvs, config)?;
    }
    let (mut failed, mut done) = (0_usize, String::new());
    for (key, value) in parameters(config, &super::release()?, mode) {
        match kernel::sysctl::write(&key, &value) {
            Ok(()) => done.push_str(&format!("{key} is {value}\n")),
            Err(error) => {
                failed = failed.saturating_add(1);
                terminal::note(&kernel::Chain(&error).to_string());
            }
        }
    }
    terminal::put(&done)?;
    Ok(if failed == 0 { Exit::Success } else { Exit::Failure })
}

#[cfg(test)]
mod tests {
    use super::is_spared;

    #[test]
    fn process_is_spared_by_a_score_below_that_of_others() {
        assert!(is_spared("-997\n") && is_spared("-1"));
        assert!(!is_spared("0\n") && !is_spared("1000\n") && !is_spared(""));
    }
}

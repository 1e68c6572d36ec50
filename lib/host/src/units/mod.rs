//! `Units`: the units of a running systemd, by its D-Bus interface. No other program is executed.
//!
//! Invariant: a job is over when systemd says that this very job is, by its path, and is a success when the unit is found to be what the job was
//! to make it. Every call and every wait has a limit.

mod fault;

use std::future::Future;
use std::io;
use std::time::Duration;

use futures_util::StreamExt;
use zbus::proxy::{Builder, CacheProperties};
use zbus::{Connection, OwnedObjectPath, Proxy};

pub use fault::{Refused, UnitError};

const BUS_NAME: &str = "org.freedesktop.systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
/// A call that starts no job, `Reload` included: with thousands of units it takes seconds.
const CALL: Duration = Duration::from_secs(90);

/// A connection to the systemd of this machine.
#[derive(Debug)]
pub struct Units {
    runtime: tokio::runtime::Runtime,
    manager: Proxy<'static>,
}

/// What systemd says of a unit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnitState {
    /// `loaded`, `not-found`, `masked`, `bad-setting`, `error`.
    pub load: String,
    /// `active`, `reloading`, `inactive`, `failed`, `activating`, `deactivating`.
    pub active: String,
    /// As `active`, in the words of its kind: `running`, `exited`, `auto-restart`.
    pub sub: String,
    /// Whether the boot starts it: `enabled`, `disabled`, `static`, `masked`; empty for a unit without a file.
    pub file: String,
    /// What a service says beyond that.
    pub service: Option<Service>,
}

/// What systemd says of a service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Service {
    /// `notify`, `exec`, `simple`, `oneshot`, ….
    pub kind: String,
    /// How it ended last: `success`, `exit-code`, `signal`, `timeout`, `watchdog`, ….
    pub result: String,
    /// Exit status of its main process, or the signal that ended it.
    pub status: i32,
    /// How often systemd has started it again by itself.
    pub restarts: u32,
    /// The line that it last gave about itself, by sd_notify.
    pub text: String,
}

/// What a job is to do to a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Start it if it does not run.
    Start,
    /// Stop it.
    Stop,
    /// Stop it and start it.
    Restart,
    /// Have it read its configuration again, or restart it if it cannot.
    Reload,
}

impl Job {
    const fn method(self) -> &'static str {
        match self {
            Self::Start => "StartUnit",
            Self::Stop => "StopUnit",
            Self::Restart => "RestartUnit",
            Self::Reload => "ReloadOrRestartUnit",
        }
    }

    /// The verb for a message.
    #[must_use]
    pub const fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Reload => "reload",
        }
    }
}

impl Units {
    /// Connects to the system bus (`DBUS_SYSTEM_BUS_ADDRESS`, else its usual socket) and asks for signals about jobs.
    ///
    /// # Errors
    /// When there is no bus, or systemd does not answer on it.
    pub fn connect() -> Result<Self, UnitError> {
        let failed =
            |cause: io::Error| UnitError::of("the system bus", "connect to", Refused::Other(cause.to_string()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let manager = runtime.block_on(limited("systemd", "connect to", CALL, async {
            let manager: Proxy<'static> = Builder::new(&Connection::system().await?)
                .destination(BUS_NAME)
                .path("/org/freedesktop/systemd1")
                .interface(MANAGER)
                .cache_properties(CacheProperties::No)
                .build()
                .await?;
            manager.call::<_, _, ()>("Subscribe", &()).await?;
            Ok(manager)
        }))?;
        Ok(Self { runtime, manager })
    }

    /// What systemd says of a unit, whether it has been loaded or not.
    ///
    /// # Errors
    /// When systemd does not answer.
    pub fn state(&self, unit: &str) -> Result<UnitState, UnitError> {
        self.runtime.block_on(limited(unit, "read the state of", CALL, self.read(unit)))
    }

    /// Has systemd read its unit files again.
    ///
    /// # Errors
    /// When it cannot.
    pub fn reload(&self) -> Result<(), UnitError> {
        self.runtime.block_on(limited("systemd", "reload", CALL, self.manager.call("Reload", &())))
    }

    /// Has the boot start a unit.
    ///
    /// # Errors
    /// When there is no such unit, or it is masked.
    pub fn enable(&self, unit: &str) -> Result<(), UnitError> {
        let asked = async {
            let _: (bool, Vec<(String, String, String)>) =
                self.manager.call("EnableUnitFiles", &(vec![unit], false, false)).await?;
            Ok(())
        };
        self.runtime.block_on(limited(unit, "enable", CALL, asked))
    }

    /// Has the boot leave a unit alone.
    ///
    /// # Errors
    /// When systemd refuses; a unit that is not there is no error.
    pub fn disable(&self, unit: &str) -> Result<(), UnitError> {
        let asked = async {
            let _: Vec<(String, String, String)> = self.manager.call("DisableUnitFiles", &(vec![unit], false)).await?;
            Ok(())
        };
        forgiving(self.runtime.block_on(limited(unit, "disable", CALL, asked)))
    }

    /// Has systemd forget that a unit has failed, and how often it was started.
    ///
    /// # Errors
    /// When systemd refuses; a unit that is not loaded is no error.
    pub fn forget_failure(&self, unit: &str) -> Result<(), UnitError> {
        let named = (unit,);
        let asked = self.manager.call("ResetFailedUnit", &named);
        forgiving(self.runtime.block_on(limited(unit, "reset", CALL, asked)))
    }

    /// Begins a job and does not wait for its end.
    ///
    /// # Errors
    /// When systemd refuses it.
    pub fn begin(&self, job: Job, unit: &str) -> Result<(), UnitError> {
        let asked = async {
            let _: OwnedObjectPath = self.manager.call(job.method(), &(unit, "replace")).await?;
            Ok(())
        };
        self.runtime.block_on(limited(unit, job.verb(), CALL, asked))
    }

    /// Runs a job to its end and returns what systemd says of the unit then.
    ///
    /// # Errors
    /// When systemd refuses it, it does not end within `limit`, or it ends in anything but `done`.
    pub fn run(&self, job: Job, unit: &str, limit: Duration) -> Result<UnitState, UnitError> {
        let result = self.runtime.block_on(limited(unit, job.verb(), limit, async {
            // Before the call: a short job ends before its answer is read.
            let mut ended = self.manager.receive_signal("JobRemoved").await?;
            let path: OwnedObjectPath = self.manager.call(job.method(), &(unit, "replace")).await?;
            while let Some(message) = ended.next().await {
                let (_, removed, _, result): (u32, OwnedObjectPath, String, String) = message.body().deserialize()?;
                if removed == path {
                    return Ok(result);
                }
            }
            Err(zbus::Error::from(io::Error::from(io::ErrorKind::ConnectionAborted)))
        }))?;
        let state = self.state(unit)?;
        if result == "done" {
            return Ok(state);
        }
        Err(UnitError::of(unit, job.verb(), Refused::Ended { result, state: Box::new(state) }))
    }

    /// Whether a unit starts at boot. The unit's own property is as old as the last reading of unit files: a unit that another one names
    /// is read before it is enabled.
    async fn file_state(&self, unit: &str) -> zbus::Result<String> {
        match self.manager.call("GetUnitFileState", &(unit,)).await {
            Err(error) => match Refused::from(error.clone()) {
                Refused::Missing => Ok(String::new()),
                _ => Err(error),
            },
            answer => answer,
        }
    }

    async fn read(&self, unit: &str) -> zbus::Result<UnitState> {
        let path: OwnedObjectPath = self.manager.call("LoadUnit", &(unit,)).await?;
        let of = self.interface(&path, UNIT).await?;
        let mut state = UnitState {
            load: of.get_property("LoadState").await?,
            active: of.get_property("ActiveState").await?,
            sub: of.get_property("SubState").await?,
            file: self.file_state(unit).await?,
            service: None,
        };
        if unit.ends_with(".service") && state.load == "loaded" {
            let of = self.interface(&path, SERVICE).await?;
            state.service = Some(Service {
                kind: of.get_property("Type").await?,
                result: of.get_property("Result").await?,
                status: of.get_property("ExecMainStatus").await?,
                restarts: of.get_property("NRestarts").await?,
                text: of.get_property("StatusText").await?,
            });
        }
        Ok(state)
    }

    async fn interface<'a>(&self, path: &'a OwnedObjectPath, name: &'a str) -> zbus::Result<Proxy<'a>> {
        let builder = Builder::new(self.manager.connection()).destination(BUS_NAME).path(path.as_str()).interface(name);
        builder.cache_properties(CacheProperties::No).build().await
    }
}

impl UnitState {
    /// The state in words, with what the unit says of itself.
    #[must_use]
    pub fn words(&self) -> String {
        if self.load != "loaded" {
            return self.load.clone();
        }
        let mut words = format!("{} ({})", self.active, self.sub);
        if let Some(service) = &self.service {
            if service.result != "success" && !service.result.is_empty() {
                words.push_str(&format!(", result {}, status {}", service.result, service.status));
            }
            if service.restarts > 0 {
                words.push_str(&format!(", started again {} times", service.restarts));
            }
            if !service.text.is_empty() {
                words.push_str(&format!(", {:?}", service.text));
            }
        }
        words
    }
}

/// An answer within a limit, with a failure in words.
async fn limited<T>(
    unit: &str,
    operation: &'static str,
    limit: Duration,
    asked: impl Future<Output = zbus::Result<T>>,
) -> Result<T, UnitError> {
    match tokio::time::timeout(limit, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(UnitError::of(unit, operation, Refused::from(error))),
        Err(_) => Err(UnitError::of(unit, operation, Refused::Late(limit))),
    }
}

/// What is gone need not be undone.
fn forgiving(answer: Result<(), UnitError>) -> Result<(), UnitError> {
    match answer {
        Err(error) if error.refused == Refused::Missing => Ok(()),
        other => other,
    }
}

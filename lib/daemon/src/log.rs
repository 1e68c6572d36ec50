//! The log of a daemon: one subscriber, on standard error, as text or as JSON, or to journald ([`journal`]).
//!
//! JSON is one object a line with the names of the Elastic Common Schema (`@timestamp`, `log.level`, `message`,
//! `service.name`, `error.message`); fields that the schema does not know stand below the program's own name. The
//! detail changes while the daemon runs: SIGUSR1 adds detail, SIGUSR2 takes it back to what the flags say.
//!
//! Invariants: RUST_LOG, when set, says what instead of `--v`, until a signal asks for more; a line that nobody takes, on a full disk or in a
//! pipe without a reader, is missed and hinders nothing.

mod journal;
mod recent;

use std::backtrace::Backtrace;
use std::fmt;
use std::io::{IsTerminal, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, filter_fn};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, layer};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use self::journal::{Entry, Socket};
pub use self::recent::{Entry as RecentEntry, KEPT, Kind, Recent};
use crate::glog::{Modules, SourceLine};
use crate::json;
use crate::status::escape;
use crate::terminal::wants_colour;

/// Version of the Elastic Common Schema whose names are used.
const ECS_VERSION: &str = "8.11.0";

/// Libraries whose debugging would drown ours.
const QUIET: &str = "netlink_proto=info,h2=info,hyper=info,tower=info,rustls=info";

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// What whoever reads standard error can use best: text for a terminal, fields for journald, JSON for everybody else.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One object a line.
    Json,
    /// Fields of their own in the journal.
    Journal,
}

impl Form {
    fn for_reader(self) -> Self {
        match self {
            Self::Auto if std::io::stderr().is_terminal() => Self::Text,
            Self::Auto if journal::is_read_by_journald() => Self::Journal,
            Self::Auto => Self::Json,
            chosen => chosen,
        }
    }
}

/// Form and detail of the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Text, JSON or the journal's fields.
    pub form: Form,
    /// 0 is normal, 1 adds debugging, 2 and more what libraries trace.
    pub verbosity: u8,
    /// Detail of single modules beside that.
    pub modules: Modules,
    /// Where a stack is written with what is logged.
    pub backtrace_at: Option<SourceLine>,
}

/// The running log; clones are the same log.
#[derive(Debug, Clone)]
pub struct Log {
    filter: reload::Handle<EnvFilter, Registry>,
    detail: Arc<Detail>,
    recent: Recent,
}

/// The detail of the log, for all its clones.
#[derive(Debug)]
struct Detail {
    /// What the flags or the configuration say.
    normal: AtomicU8,
    now: AtomicU8,
}

impl Detail {
    const fn new(verbosity: u8) -> Self {
        Self { normal: AtomicU8::new(verbosity), now: AtomicU8::new(verbosity) }
    }
}

impl Log {
    /// Starts the log of `program`, which is at `version`.
    ///
    /// # Errors
    /// When the process has a log already.
    pub fn start(program: &'static str, version: &'static str, settings: Settings) -> Result<Self, TryInitError> {
        let initial = EnvFilter::try_from_default_env().unwrap_or_else(|_| filter(settings.verbosity));
        let (initial, handle) = reload::Layer::new(initial);
        // Of a line that cannot be written the library would say so where it cannot be written either, by a macro that panics then.
        let lines = layer().with_writer(std::io::stderr).log_internal_errors(false).fmt_fields(Words);
        let lines = match (settings.form.for_reader(), Socket::open()) {
            (Form::Journal, Ok(socket)) => {
                lines.with_writer(move || socket.clone()).with_ansi(false).event_format(Entry { program }).boxed()
            }
            (Form::Json, _) => lines.event_format(Ecs { program, version }).boxed(),
            _ => lines.with_ansi(wants_colour(std::io::stderr().is_terminal())).with_target(false).boxed(),
        };
        let stacks = settings.backtrace_at.map(Stacks::layer);
        let lines = lines.with_filter(with_modules(initial, settings.modules));
        let recent = Recent::default();
        tracing_subscriber::registry().with(lines).with(stacks).with(recent.layer()).try_init()?;
        Ok(Self { filter: handle, detail: Arc::new(Detail::new(settings.verbosity)), recent })
    }

    /// The last lines.
    #[must_use]
    pub fn recent(&self) -> Recent {
        self.recent.clone()
    }

    /// Adds detail: debugging first, then what libraries trace.
    pub fn raise(&self) {
        self.set(self.detail.now.load(Ordering::Relaxed).saturating_add(1).min(2));
    }

    /// Takes the detail back to what the flags say.
    pub fn restore(&self) {
        self.set(self.detail.normal.load(Ordering::Relaxed));
    }

    /// Takes the detail to `verbosity`, and back to it from now on.
    pub fn restore_to(&self, verbosity: u8) {
        if self.detail.normal.swap(verbosity, Ordering::Relaxed) != verbosity {
            self.restore();
        }
    }

    fn set(&self, verbosity: u8) {
        self.detail.now.store(verbosity, Ordering::Relaxed);
        match self.filter.reload(filter(verbosity)) {
            Ok(()) => tracing::info!(verbosity, "detail of the log changed"),
            Err(error) => tracing::warn!(%error, "the detail of the log cannot be changed"),
        }
    }
}

fn filter(verbosity: u8) -> EnvFilter {
    EnvFilter::new(match verbosity {
        0 => "info,netlink_proto=warn".to_owned(),
        1 => format!("debug,{QUIET}"),
        _ => format!("trace,{QUIET}"),
    })
}

/// Lets through what `filter` does, and what is part of the detail of single modules.
fn with_modules<S: Subscriber>(
    filter: impl Filter<S> + Send + Sync + 'static,
    modules: Modules,
) -> Box<dyn Filter<S> + Send + Sync> {
    if modules.is_empty() {
        return Box::new(filter);
    }
    let of_modules = filter_fn(move |meta| modules.enables(meta)).with_max_level_hint(LevelFilter::TRACE);
    Box::new(filter.or(of_modules))
}

/// Writes the stack of the thread that logs, where [`SourceLine`] says.
struct Stacks;

impl Stacks {
    fn layer<S: Subscriber + for<'span> LookupSpan<'span>>(at: SourceLine) -> impl Layer<S> {
        Self.with_filter(filter_fn(move |meta| at.is_of(meta)))
    }
}

impl<S: Subscriber> Layer<S> for Stacks {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let meta = event.metadata();
        let place = format_args!("{}:{}", meta.file().unwrap_or_default(), meta.line().unwrap_or_default());
        // As a line of the log that cannot be written, it is missed and hinders nothing.
        let _ = writeln!(std::io::stderr().lock(), "stack at {place}\n{}", Backtrace::force_capture());
    }
}

/// Formats an event as one JSON object.
struct Ecs {
    program: &'static str,
    version: &'static str,
}

impl<S, N> FormatEvent<S, N> for Ecs
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let meta = event.metadata();
        // In this order, which ecs-logging asks of the first three: a person reads time, level and message first.
        let mut object: Vec<String> = Vec::new();
        let mut set = |name: &str, value: Value| object.push(format!("{}:{value}", Value::from(name)));
        set("@timestamp", time.into());
        set("log.level", meta.level().as_str().to_lowercase().into());
        set("message", fields.message.into());
        set("ecs.version", ECS_VERSION.into());
        set("service.name", self.program.into());
        set("service.version", self.version.into());
        set("process.pid", std::process::id().into());
        set("log.logger", fields.logger.as_deref().unwrap_or(meta.target()).into());
        if let Some(error) = fields.error {
            set("error.message", error);
        }
        if !fields.others.is_empty() {
            set(&self.program.replace('-', "_"), fields.others.into());
        }
        // Not only programs read it.
        writeln!(writer, "{}", json::escaped(&format!("{{{}}}", object.join(","))))
    }
}

/// Writes the fields of an event as text: as by default, and so that nothing in them ends or changes their line.
#[derive(Debug, Clone, Copy)]
struct Words;

impl<'writer> FormatFields<'writer> for Words {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut words = Written { writer, begun: false, result: Ok(()) };
        fields.record(&mut words);
        words.result
    }
}

/// What has been written of an event.
struct Written<'writer> {
    writer: Writer<'writer>,
    begun: bool,
    result: fmt::Result,
}

impl Visit for Written<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let (name, value) = (field.name(), format!("{value:?}"));
        if self.result.is_err() || name.starts_with(OF_LOG) {
            return;
        }
        let space = if self.begun { " " } else { "" };
        self.begun = true;
        let value = escape(&value);
        self.result = match name {
            "message" => write!(self.writer, "{space}{value}"),
            name if self.writer.has_ansi_escapes() => {
                write!(self.writer, "{space}\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m{value}")
            }
            name => write!(self.writer, "{space}{name}={value}"),
        };
    }
}

/// How the names of fields begin that the crate `log` adds: where a library says so is nothing that it says.
const OF_LOG: &str = "log.";

/// The fields of one event.
#[derive(Default)]
struct Fields {
    message: String,
    /// The module of an event of the crate `log`, all of which have one target.
    logger: Option<String>,
    error: Option<Value>,
    others: Map<String, Value>,
}

impl Fields {
    fn set(&mut self, field: &Field, value: Value) {
        match field.name() {
            "message" => self.message = value.as_str().map_or_else(|| value.to_string(), str::to_owned),
            "error" => self.error = Some(value),
            "log.target" => self.logger = value.as_str().map(str::to_owned),
            name if name.starts_with(OF_LOG) => {}
            name => {
                self.others.insert(name.to_owned(), value);
            }
        }
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Lines {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    impl Lines {
        fn read(&self) -> Vec<String> {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap().lines().map(str::to_owned).collect()
        }
    }

    #[test]
    fn json_has_the_names_of_the_elastic_common_schema_and_one_object_a_line() {
        let lines = Lines::default();
        let format = Ecs { program: "ipvs-proxy", version: "0.1.0" };
        let subscriber = Registry::default().with(layer().with_writer(lines.clone()).event_format(format));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(error = %"no route\nto host", rows = 3, dry = false, object = "a", "{} cannot be read", "x");
        });
        let lines = lines.read();
        assert_eq!(lines.len(), 1, "{lines:?}");
        let order = ["{\"@timestamp\":", ",\"log.level\":\"warn\",\"message\":\"x cannot be read\",\"ecs.version\":"];
        assert!(lines[0].starts_with(order[0]) && lines[0].contains(order[1]), "{}", lines[0]);
        let object: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(object["log.level"], "warn");
        assert_eq!(object["message"], "x cannot be read");
        assert_eq!(object["error.message"], "no route\nto host");
        assert_eq!(object["service.name"], "ipvs-proxy");
        assert_eq!(object["process.pid"], std::process::id());
        assert_eq!(object["ipvs_proxy"]["rows"], 3);
        assert_eq!(object["ipvs_proxy"]["dry"], false);
        let time = object["@timestamp"].as_str().unwrap();
        assert!(time.ends_with('Z') && time.contains('T'), "{time}");
    }

    /// What each form makes of what `log` logs.
    fn in_each_form(log: impl Fn()) -> [String; 2] {
        let (json, text) = (Lines::default(), Lines::default());
        let format = Ecs { program: "netd", version: "0.1.0" };
        let objects = layer().with_writer(json.clone()).event_format(format);
        let words = layer().with_writer(text.clone()).fmt_fields(Words).with_ansi(false).with_target(false);
        tracing::subscriber::with_default(Registry::default().with(objects), &log);
        tracing::subscriber::with_default(Registry::default().with(words), &log);
        [json, text].map(|lines| String::from_utf8(lines.0.lock().unwrap().clone()).unwrap())
    }

    #[test]
    fn a_text_from_outside_forges_no_line_and_drives_no_terminal() {
        let key = "x\nERROR forged\r\u{1b}[2J\u{9b}2J\u{202e}\u{61c}";
        let logged =
            in_each_form(|| tracing::warn!(error = %key, object = %key, name = key, rows = 3, "{key} is junk"));
        for text in &logged {
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(!text.trim_end_matches('\n').contains(cluster::text::is_hidden), "{text:?}");
        }
        let [json, text] = logged;
        let object: Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&object["error.message"], &object["netd"]["object"]), (&key.into(), &key.into()));
        let escaped = "x\\nERROR forged\\r\\u{1b}[2J\\u{9b}2J\\u{202e}\\u{61c}";
        let expected = format!(" WARN {escaped} is junk error={escaped} object={escaped} name=\"{escaped}\" rows=3\n");
        assert!(text.ends_with(&expected), "{text}");
    }

    #[test]
    fn a_library_is_named_by_its_own_module() {
        // As the crate `log` hands it over.
        let [json, text] = in_each_form(|| {
            tracing::warn!(
                target: "log",
                { log.target = "netlink_proto::codecs", log.file = "/root/codecs.rs", log.line = 3 },
                "attribute is unknown"
            );
        });
        let object: Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&object["log.logger"], &object["netd"]), (&"netlink_proto::codecs".into(), &Value::Null), "{json}");
        assert!(text.ends_with(" WARN attribute is unknown\n"), "{text}");
    }

    #[test]
    fn detail_changes_while_running_and_goes_back() {
        let lines = Lines::default();
        let (layer_, handle) = reload::Layer::new(filter(0));
        let subscriber = Registry::default().with(layer_).with(layer().with_writer(lines.clone()).with_ansi(false));
        tracing::subscriber::with_default(subscriber, || {
            let log = Log { filter: handle, detail: Arc::new(Detail::new(0)), recent: Recent::default() };
            tracing::debug!("first");
            log.raise();
            tracing::debug!("second");
            tracing::trace!("third");
            log.raise();
            tracing::trace!("fourth");
            log.restore();
            tracing::debug!("fifth");
            log.clone().restore_to(1);
            tracing::debug!("sixth");
            log.raise();
            log.restore();
            tracing::debug!("seventh");
            tracing::trace!("eighth");
        });
        let text = lines.read().join("\n");
        for (word, shown) in [
            ("first", false),
            ("second", true),
            ("third", false),
            ("fourth", true),
            ("fifth", false),
            ("sixth", true),
            ("seventh", true),
            ("eighth", false),
        ] {
            assert_eq!(text.contains(word), shown, "{word}: {text}");
        }
    }

    #[test]
    fn one_module_is_shown_in_more_detail_than_the_others() {
        let lines = Lines::default();
        let modules = |text: &str| with_modules::<Registry>(filter(0), text.parse().unwrap());
        let text = layer().with_writer(lines.clone()).with_ansi(false);
        let subscriber = Registry::default().with(text.with_filter(modules("tests=1")));
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("first");
            tracing::trace!("second");
            tracing::debug!(target: "elsewhere", "third");
        });
        let text = layer().with_writer(lines.clone()).with_ansi(false);
        let subscriber = Registry::default().with(text.with_filter(modules("worker=2")));
        tracing::subscriber::with_default(subscriber, || tracing::debug!("fourth"));
        let text = lines.read().join("\n");
        for (word, shown) in [("first", true), ("second", false), ("third", true), ("fourth", false)] {
            assert_eq!(text.contains(word), shown, "{word}: {text}");
        }
    }
}

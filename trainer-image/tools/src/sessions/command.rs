//! The commands of sessions. Read and write files.

use std::{
    io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _},
    panic::resume_unwind,
    path::PathBuf,
    thread,
};

use clap::{Args, Subcommand};
use codex::{
    arguments::{Duration, duration, whole},
    atomic_fs::{self, FileError},
    error::CommandError,
};
use codex_provenance::text::counted;
use codex_reports::exit;

use super::{
    database::{Database, DatabaseError, Journal},
    event::{Event, MAX_MESSAGE, Role, SessionId},
    filter::Filter,
    lines::{self, LinesError},
    pool::Pool,
    rotate::{Limits, rotate},
    show::{self, Format},
};
use crate::size::{Size, size};

/// The database, if nothing names another one.
const DATABASE: &str = "sessions/sessions.db";

/// Log, show, export and rotate the events of sessions.
///
/// Events are in a SQLite database, in the table `session_events(ts, session_id, role, message)`. Many processes may write
/// to it at once.
#[derive(Debug, Args)]
pub struct Sessions {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

/// Where events are.
#[derive(Clone, Debug, Args)]
struct Place {
    /// The database.
    #[arg(long, value_name = "FILE", env = "CODEX_SESSIONS_DB", default_value = DATABASE, global = true)]
    db: PathBuf,
    /// The journal of the database when it is opened for writing. On network file systems a write-ahead log is refused.
    #[arg(long, value_name = "JOURNAL", env = "CODEX_SESSIONS_JOURNAL", default_value = "auto", global = true)]
    journal: Journal,
    /// The most connections to the database at once: import reads and adds as many files at a time.
    #[arg(long, value_name = "COUNT", env = "CODEX_SQLITE_POOL", default_value_t = 1, value_parser = whole::<usize>(0..=64), global = true)]
    pool: usize,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Add an event.
    Log(Log),
    /// List the sessions, with the times of their first and last event and the number of events.
    List(List),
    /// Show the events of a session.
    View(View),
    /// Show events of all sessions.
    Query(Query),
    /// Write events to a file, as lines of JSON or as text.
    Export(Export),
    /// Show the last events, the newest one last.
    Last(Last),
    /// Add the events of files with lines of JSON. Events that are there already are not added again.
    Import(Import),
    /// Move old events to a file of lines.
    Rotate(Rotate),
}

#[derive(Debug, Args)]
struct Log {
    /// The session: letters, digits, dots, dashes and underscores.
    #[arg(value_name = "SESSION", env = "CODEX_SESSION_ID", value_parser = clap::value_parser!(SessionId))]
    session: SessionId,
    /// What wrote the event: system, user, assistant, tool, INFO or WARN.
    #[arg(long, value_name = "ROLE", default_value = "INFO", value_parser = clap::value_parser!(Role))]
    role: Role,
    /// The message [default: standard input].
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "lines")]
    message: Option<String>,
    /// Log each line of standard input as an event of its own, as it arrives.
    #[arg(long)]
    lines: bool,
    /// Also append the event to SESSION.ndjson in this directory.
    #[arg(long, value_name = "DIR", env = "CODEX_SESSIONS_DIR")]
    ndjson: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct List {
    /// How sessions are printed.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

#[derive(Debug, Args)]
struct View {
    /// The session.
    #[arg(value_name = "SESSION", value_parser = clap::value_parser!(SessionId))]
    session: SessionId,
    #[command(flatten)]
    filter: Filter,
    /// How events are printed.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

#[derive(Debug, Args)]
struct Query {
    /// Only events of this session.
    #[arg(long, value_name = "SESSION", value_parser = clap::value_parser!(SessionId))]
    session_id: Option<SessionId>,
    #[command(flatten)]
    filter: Filter,
    /// How events are printed.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

#[derive(Debug, Args)]
struct Export {
    /// The session [default: all of them].
    #[arg(value_name = "SESSION", value_parser = clap::value_parser!(SessionId))]
    session: Option<SessionId>,
    #[command(flatten)]
    filter: Filter,
    /// How events are written: json can be imported again.
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    format: Format,
    /// The file, which is replaced as a whole.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct Last {
    /// The number of events.
    #[arg(value_name = "COUNT", default_value_t = 20, value_parser = whole::<u64>(1..=1_000_000))]
    count: u64,
    /// Only events of this session.
    #[arg(long, value_name = "SESSION", value_parser = clap::value_parser!(SessionId))]
    session_id: Option<SessionId>,
    #[command(flatten)]
    filter: Filter,
    /// How events are printed.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

#[derive(Debug, Args)]
struct Import {
    /// Files with lines of JSON, or directories with such files. A line without a session belongs to the session that its file is
    /// named after.
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
}

#[derive(Debug, Args)]
#[group(id = "limits", required = true, multiple = true)]
struct RotateLimits {
    /// Events that are older leave, such as 90d.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    max_age: Option<Duration>,
    /// The oldest events leave until the others have about this size, such as 500M.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_size: Option<Size>,
}

#[derive(Debug, Args)]
struct Rotate {
    #[command(flatten)]
    limits: RotateLimits,
    /// The directory of the file that takes the events [default: archive, beside the database].
    #[arg(long, value_name = "DIR", conflicts_with = "discard")]
    archive: Option<PathBuf>,
    /// Delete the events without keeping them anywhere.
    #[arg(long)]
    discard: bool,
}

/// Printing or reading failed.
#[derive(Debug, thiserror::Error)]
enum SessionsError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Lines(#[from] LinesError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("standard input is no UTF-8 text: log text")]
    NotText,
    #[error("the message has more than {MAX_MESSAGE} bytes: log a part of it")]
    Long,
    #[error("standard input is a terminal: give --message TEXT, or pipe the message in")]
    Terminal,
    /// The reader of the output is gone.
    #[error("the output was closed")]
    Closed,
}

impl From<SessionsError> for CommandError {
    fn from(error: SessionsError) -> Self {
        match error {
            SessionsError::Database(error) => error.into(),
            SessionsError::File(error) | SessionsError::Lines(LinesError::File(error)) => error.into(),
            error => Self::bad_input(error),
        }
    }
}

impl Sessions {
    /// Runs the command.
    ///
    /// # Errors
    /// Exit code 2: an argument or a file is wrong. 1: the database or the file system fails.
    pub fn run(self) -> Result<i32, CommandError> {
        let Self { place, command } = self;
        let done = match command {
            Command::Log(command) => command.run(&place),
            Command::List(command) => command.run(&place),
            Command::View(View { session, filter, format }) => print(&place, Some(&session), &filter, format, false),
            Command::Query(Query { session_id, filter, format }) => {
                print(&place, session_id.as_ref(), &filter, format, true)
            }
            Command::Export(command) => command.run(&place),
            Command::Last(command) => command.run(&place),
            Command::Import(command) => command.run(&place),
            Command::Rotate(command) => return command.run(&place),
        };
        match done {
            // A reader that closed the pipe (`| head`) has what it wanted.
            Ok(()) | Err(SessionsError::Closed) => Ok(exit::FINISHED),
            Err(error) => Err(error.into()),
        }
    }
}

/// Writes to standard output.
fn put(text: &str) -> Result<(), SessionsError> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(SessionsError::Closed),
        Err(error) => Err(FileError::of("writing to", "standard output".as_ref())(error).into()),
        Ok(()) => Ok(()),
    }
}

fn warn(wrong: usize) {
    if wrong > 0 {
        tracing::warn!(rows = wrong, "rows were left out: their time, session, role or message has another form");
    }
}

/// Does something with each item, on as many threads as `count` says, and returns the results in the order of the items.
fn on_threads<T: Sync, R: Send>(count: usize, items: &[T], action: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let action = &action;
    let at_once = |some: &[T]| -> Vec<R> {
        thread::scope(|scope| {
            let threads: Vec<_> = some.iter().map(|item| scope.spawn(move || action(item))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
        })
    };
    items.chunks(count.max(1)).flat_map(at_once).collect()
}

fn print(
    place: &Place,
    session: Option<&SessionId>,
    filter: &Filter,
    format: Format,
    with_session: bool,
) -> Result<(), SessionsError> {
    let database = Database::read(&place.db)?;
    let wrong = database.each(session, filter, |event| put(&show::event(&event, format, with_session)))?;
    warn(wrong);
    Ok(())
}

impl Log {
    fn run(self, place: &Place) -> Result<(), SessionsError> {
        let mut database = Database::open(&place.db, place.journal)?;
        let mut log = |message: String| {
            let event = Event::now(self.session.clone(), self.role, message);
            database.add(std::slice::from_ref(&event))?;
            if let Some(directory) = &self.ndjson {
                lines::append(directory, &event)?;
            }
            Ok::<_, SessionsError>(())
        };
        let input = io::stdin();
        if let Some(message) = self.message {
            return if message.len() > MAX_MESSAGE { Err(SessionsError::Long) } else { log(message) };
        }
        if input.is_terminal() && !self.lines {
            return Err(SessionsError::Terminal);
        }
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::InvalidData => SessionsError::NotText,
            _ => FileError::of("reading", "standard input".as_ref())(error).into(),
        };
        let mut input = input.lock();
        if !self.lines {
            let mut message = String::new();
            input.take(MAX_MESSAGE as u64 + 1).read_to_string(&mut message).map_err(failed)?;
            return if message.len() > MAX_MESSAGE { Err(SessionsError::Long) } else { log(message) };
        }
        loop {
            let mut line = String::new();
            if (&mut input).take(MAX_MESSAGE as u64 + 1).read_line(&mut line).map_err(failed)? == 0 {
                return Ok(());
            }
            if line.len() > MAX_MESSAGE {
                return Err(SessionsError::Long);
            }
            let line = line.trim_end_matches(['\n', '\r']);
            if !line.is_empty() {
                log(line.to_owned())?;
            }
        }
    }
}

impl List {
    fn run(self, place: &Place) -> Result<(), SessionsError> {
        let summaries = Database::read(&place.db)?.summaries()?;
        summaries.iter().try_for_each(|summary| put(&show::summary(summary, self.format)))
    }
}

impl Export {
    fn run(self, place: &Place) -> Result<(), SessionsError> {
        let database = Database::read(&place.db)?;
        let with_session = self.session.is_none();
        let (mut events, mut wrong) = (0_usize, Ok(0));
        atomic_fs::make_parents(&self.out)?;
        atomic_fs::write_with(&self.out, |file| {
            let mut writer = io::BufWriter::new(file);
            let mut failed = None;
            wrong = database.each(self.session.as_ref(), &self.filter, |event| {
                if failed.is_none() {
                    events += 1;
                    failed = writer.write_all(show::event(&event, self.format, with_session).as_bytes()).err();
                }
                Ok::<_, DatabaseError>(())
            });
            if let Some(error) = failed {
                return Err(error);
            }
            if wrong.is_err() {
                return Err(io::Error::other("the database failed"));
            }
            writer.flush()
        })
        .or_else(|error| if wrong.is_err() { Ok(()) } else { Err(error) })?;
        warn(wrong?);
        put(&format!("{} written to {}\n", counted(events, "event"), self.out.display()))
    }
}

impl Last {
    fn run(self, place: &Place) -> Result<(), SessionsError> {
        let count = self.filter.limit.map_or(self.count, |limit| limit.min(self.count));
        let database = Database::read(&place.db)?;
        let (events, wrong) = database.last(count, self.session_id.as_ref(), &self.filter)?;
        warn(wrong);
        let with_session = self.session_id.is_none();
        events.iter().try_for_each(|event| put(&show::event(event, self.format, with_session)))
    }
}

impl Import {
    fn run(self, place: &Place) -> Result<(), SessionsError> {
        let mut files = Vec::new();
        for path in &self.paths {
            files.extend(lines::files(path)?);
        }
        // Everything is read before anything is added.
        let read: Result<Vec<_>, _> = on_threads(place.pool, &files, |path| lines::read(path)).into_iter().collect();
        let read = read?;
        let pool = Pool::new(&place.db, place.journal, place.pool);
        // A database is made even if there is nothing to add.
        pool.with(|_| Ok::<_, DatabaseError>(()))?;
        let added = on_threads(place.pool, &read, |events| pool.with(|database| database.add_missing(events)));
        for ((path, events), new) in files.iter().zip(&read).zip(added) {
            let new = new?;
            let known = events.len() - new;
            put(&format!("{}: {} added, {known} there already\n", path.display(), counted(new, "event")))?;
        }
        Ok(())
    }
}

impl Rotate {
    fn run(self, place: &Place) -> Result<i32, CommandError> {
        // A database that does not exist has nothing to rotate, and must not be made.
        Database::read(&place.db)?;
        let mut database = Database::open(&place.db, place.journal)?;
        let beside = || place.db.parent().unwrap_or(std::path::Path::new("")).join("archive");
        let archive = (!self.discard).then(|| self.archive.unwrap_or_else(beside));
        let limits = Limits {
            max_age: self.limits.max_age.map(|age| age.0),
            max_bytes: self.limits.max_size.map(|size| size.0),
        };
        let rotated = rotate(&mut database, limits, archive.as_deref())?;
        let to = rotated.archive.as_ref().map_or_else(
            || if rotated.events > 0 { ", deleted".to_owned() } else { String::new() },
            |path| format!(", now in {}", path.display()),
        );
        atomic_fs::say(&format!("{} left{to}", counted(rotated.events, "event")))?;
        Ok(exit::FINISHED)
    }
}

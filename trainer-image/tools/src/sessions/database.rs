//! The table of events in SQLite, shared by processes. Reads and writes files.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use codex::{
    atomic_fs::{self, FileError},
    error::CommandError,
};
use codex_reports::exit;
use rusqlite::{Connection, ErrorCode, OpenFlags, Row, Transaction, TransactionBehavior, params_from_iter};

use super::{
    event::{Event, SessionId, time},
    filesystem,
    filter::Filter,
};

/// How long a process waits for others that write.
pub(super) const BUSY: Duration = Duration::from_secs(30);
/// What begins a file of SQLite.
const MAGIC: &[u8] = b"SQLite format 3\0";
/// The table and its index. A table of codex-ml may have more columns.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS session_events (ts REAL NOT NULL, session_id TEXT NOT NULL, role TEXT NOT NULL, message TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS session_events_by_session ON session_events (session_id, ts);
";
const COLUMNS: &str = "ts, session_id, role, message";

/// The journal of a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Journal {
    /// A write-ahead log, but a rollback journal on network file systems.
    #[default]
    Auto,
    /// A write-ahead log: readers never wait. Refused on network file systems.
    Wal,
    /// A rollback journal.
    Delete,
}

/// A database cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// There is no file.
    #[error("--db: {} does not exist: name the database, or log or import an event first", .0.display())]
    Missing(PathBuf),
    /// The file is another one.
    #[error("--db: {} is no SQLite database: name another file", .0.display())]
    Foreign(PathBuf),
    /// The table does not exist, or has other columns.
    #[error("--db: {} has no table session_events(ts, session_id, role, message): name a database of sessions", path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        #[source]
        source: rusqlite::Error,
    },
    /// A write-ahead log was asked for where it is unsafe.
    #[error(
        "--journal wal: {} is on a network file system ({kind}), where processes cannot share the memory of a write-ahead log and \
         the database would be damaged: use --journal delete, or a database on a local disk", path.display()
    )]
    UnsafeWal {
        /// The file.
        path: PathBuf,
        /// The kind of the file system.
        kind: &'static str,
    },
    /// The database has a write-ahead log and is where that is unsafe.
    #[error(
        "--db: {} has a write-ahead log and is on a network file system ({kind}), where that would damage it: export its \
         events on the machine that writes it, and import them into another database here", path.display()
    )]
    HasWal {
        /// The file.
        path: PathBuf,
        /// The kind of the file system.
        kind: &'static str,
    },
    /// Other processes hold the lock for too long.
    #[error("--db: {} is locked by another process for more than {} s: try again", .0.display(), BUSY.as_secs())]
    Busy(PathBuf),
    /// All connections of a pool are in use for too long.
    #[error(
        "--db: all of the {most} connections to {} are in use for more than {seconds} s: raise --pool, or try again", path.display()
    )]
    Exhausted {
        /// The file.
        path: PathBuf,
        /// The most connections of the pool.
        most: usize,
        /// How long was waited.
        seconds: u64,
    },
    /// SQLite fails.
    #[error("--db: {}", path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        #[source]
        source: rusqlite::Error,
    },
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl From<DatabaseError> for CommandError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::File(error) => error.into(),
            DatabaseError::Busy(_) | DatabaseError::Exhausted { .. } | DatabaseError::Sqlite { .. } => {
                Self::failed(error)
            }
            error => Self { exit: exit::BAD_INPUT, source: error.into() },
        }
    }
}

/// What lies in a database about a session.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Summary {
    /// The session.
    pub session_id: String,
    /// The number of events.
    pub events: u64,
    /// Time of the first event, in seconds since 1970.
    pub first: f64,
    /// Time of the last event.
    pub last: f64,
}

/// A database of sessions.
#[derive(Debug)]
pub struct Database {
    connection: Connection,
    path: PathBuf,
}

/// What a file begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// It does not exist, or is empty.
    Nothing,
    /// A database with a rollback journal.
    Rollback,
    /// A database with a write-ahead log.
    Wal,
}

impl Database {
    /// Opens a database for writing, and creates it if it does not exist.
    ///
    /// # Errors
    /// The file is another one, the journal is unsafe there, or SQLite fails.
    pub fn open(path: &Path, journal: Journal) -> Result<Self, DatabaseError> {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        atomic_fs::make_directory(directory)?;
        // The file may be a link to another file system.
        Self::open_on(path, journal, kind_of(if path.exists() { path } else { directory })?)
    }

    /// As [`open`](Self::open), on a file system of this kind.
    pub(super) fn open_on(path: &Path, journal: Journal, kind: Option<&'static str>) -> Result<Self, DatabaseError> {
        let found = look(path)?;
        let wal = wanted(path, journal, kind, found)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let mut database = Self::connect(path, flags)?;
        if found != (if wal { Found::Wal } else { Found::Rollback }) {
            database.set_journal(wal)?;
        }
        let created = database.connection.pragma_update(None, "synchronous", "FULL");
        created.map_err(|source| database.failed(source))?;
        database.write(|transaction| transaction.execute_batch(SCHEMA))?;
        database.check_table()?;
        Ok(database)
    }

    /// Opens a database that exists for reading.
    ///
    /// # Errors
    /// As [`open`](Self::open), or the file does not exist.
    pub fn read(path: &Path) -> Result<Self, DatabaseError> {
        let found = look(path)?;
        if found == Found::Nothing {
            return Err(DatabaseError::Missing(path.to_owned()));
        }
        wanted(path, Journal::Auto, kind_of(path)?, found)?;
        // Readers of a write-ahead log write to its shared memory.
        let database = Self::connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)
            .or_else(|_| Self::connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY))?;
        let only = database.connection.pragma_update(None, "query_only", true);
        only.map_err(|source| database.failed(source))?;
        database.check_table()?;
        Ok(database)
    }

    fn connect(path: &Path, flags: OpenFlags) -> Result<Self, DatabaseError> {
        let wrong = |source| DatabaseError::Sqlite { path: path.to_owned(), source };
        let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX).map_err(wrong)?;
        connection.busy_timeout(BUSY).map_err(wrong)?;
        Ok(Self { connection, path: path.to_owned() })
    }

    /// Sets the journal. SQLite does not wait for other processes here, so this function does.
    fn set_journal(&self, wal: bool) -> Result<(), DatabaseError> {
        let mode = if wal { "wal" } else { "delete" };
        let begun = Instant::now();
        loop {
            let set =
                self.connection.pragma_update_and_check(None, "journal_mode", mode, |row| row.get::<_, String>(0));
            match set {
                Ok(now) if now == mode => return Ok(()),
                Ok(_) if begun.elapsed() > BUSY => return Err(DatabaseError::Busy(self.path.clone())),
                Err(error) if !is_busy(&error) || begun.elapsed() > BUSY => return Err(self.failed(error)),
                Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn check_table(&self) -> Result<(), DatabaseError> {
        match self.connection.prepare(&format!("SELECT {COLUMNS} FROM session_events LIMIT 0")) {
            Ok(_) => Ok(()),
            Err(source) if is_busy(&source) => Err(self.failed(source)),
            Err(source) => Err(DatabaseError::Table { path: self.path.clone(), source }),
        }
    }

    fn failed(&self, source: rusqlite::Error) -> DatabaseError {
        if is_busy(&source) {
            return DatabaseError::Busy(self.path.clone());
        }
        DatabaseError::Sqlite { path: self.path.clone(), source }
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Does something in one transaction, which is the only writer from its start.
    ///
    /// # Errors
    /// SQLite fails, or others write for too long.
    pub(super) fn write<T>(
        &mut self,
        action: impl FnOnce(&Transaction) -> rusqlite::Result<T>,
    ) -> Result<T, DatabaseError> {
        let done: rusqlite::Result<T> = (|| {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let done = action(&transaction)?;
            transaction.commit()?;
            Ok(done)
        })();
        done.map_err(|source| self.failed(source))
    }

    /// Adds events, all or none of them.
    ///
    /// # Errors
    /// SQLite fails, or others write for too long.
    pub fn add(&mut self, events: &[Event]) -> Result<(), DatabaseError> {
        self.write(|transaction| {
            let sql = format!("INSERT INTO session_events ({COLUMNS}) VALUES (?, ?, ?, ?)");
            let mut insert = transaction.prepare(&sql)?;
            for Event { ts, session_id, role, message } in events {
                insert.execute((ts, session_id.as_str(), role.name(), message))?;
            }
            Ok(())
        })
    }

    /// Adds those of the events that are not there yet, and returns their number.
    ///
    /// # Errors
    /// SQLite fails, or others write for too long.
    pub fn add_missing(&mut self, events: &[Event]) -> Result<usize, DatabaseError> {
        self.write(|transaction| {
            let mut insert = transaction.prepare(&format!(
                "INSERT INTO session_events ({COLUMNS}) SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS (SELECT 1 FROM session_events
                 WHERE session_id = ?2 AND ts = ?1 AND role = ?3 AND message = ?4)"
            ))?;
            let mut new = 0;
            for Event { ts, session_id, role, message } in events {
                new += insert.execute((ts, session_id.as_str(), role.name(), message))?;
            }
            Ok(new)
        })
    }

    /// Passes on events in the order of their times, and returns the number of rows that are none: they have another role, or
    /// values of other types.
    ///
    /// # Errors
    /// SQLite or the action fails.
    pub fn each<E: From<DatabaseError>>(
        &self,
        session: Option<&SessionId>,
        filter: &Filter,
        mut action: impl FnMut(Event) -> Result<(), E>,
    ) -> Result<usize, E> {
        let (conditions, values) = filter.sql(session);
        // Rows that are no events must not count towards the limit.
        let sql = format!("SELECT {COLUMNS} FROM session_events WHERE 1{conditions} ORDER BY ts, rowid");
        self.rows(&sql, values, filter.limit, &mut action)
    }

    /// Returns the last events, in the order of their times, and the number of rows among them that are none.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn last(
        &self,
        count: u64,
        session: Option<&SessionId>,
        filter: &Filter,
    ) -> Result<(Vec<Event>, usize), DatabaseError> {
        let (conditions, values) = filter.sql(session);
        let sql = format!("SELECT {COLUMNS} FROM session_events WHERE 1{conditions} ORDER BY ts DESC, rowid DESC");
        let mut events = Vec::new();
        let wrong = self.rows(&sql, values, Some(count), &mut |event| {
            events.push(event);
            Ok::<_, DatabaseError>(())
        })?;
        events.reverse();
        Ok((events, wrong))
    }

    fn rows<E: From<DatabaseError>>(
        &self,
        sql: &str,
        values: Vec<rusqlite::types::Value>,
        limit: Option<u64>,
        action: &mut impl FnMut(Event) -> Result<(), E>,
    ) -> Result<usize, E> {
        let failed = |source| E::from(self.failed(source));
        let mut select = self.connection.prepare(sql).map_err(failed)?;
        let mut rows = select.query(params_from_iter(values)).map_err(failed)?;
        let (mut wrong, mut taken) = (0, 0);
        while limit.is_none_or(|limit| taken < limit)
            && let Some(row) = rows.next().map_err(failed)?
        {
            match event(row) {
                Some(event) => {
                    taken += 1;
                    action(event)?;
                }
                None => wrong += 1,
            }
        }
        Ok(wrong)
    }

    /// Returns what lies in the database, a summary for each session, the one with the newest event last.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn summaries(&self) -> Result<Vec<Summary>, DatabaseError> {
        let sql = "SELECT session_id, count(*), min(ts), max(ts) FROM session_events
                   GROUP BY session_id ORDER BY max(ts), session_id";
        let read = || -> rusqlite::Result<Vec<Summary>> {
            let mut select = self.connection.prepare(sql)?;
            let rows = select.query_map((), |row| {
                let events: i64 = row.get(1)?;
                Ok(Summary {
                    session_id: row.get(0)?,
                    events: events.unsigned_abs(),
                    first: row.get(2)?,
                    last: row.get(3)?,
                })
            })?;
            rows.collect()
        };
        read().map_err(|source| self.failed(source))
    }

    /// Returns the bytes of the database that hold something.
    ///
    /// # Errors
    /// SQLite fails.
    pub fn size(&self) -> Result<u64, DatabaseError> {
        let of = |name: &str| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let size: rusqlite::Result<i64> = (|| Ok((of("page_count")? - of("freelist_count")?) * of("page_size")?))();
        size.map(i64::unsigned_abs).map_err(|source| self.failed(source))
    }

    /// Gives free pages back to the file system, and empties the write-ahead log.
    ///
    /// # Errors
    /// SQLite fails, or others read or write for too long.
    pub(super) fn shrink(&self) -> Result<(), DatabaseError> {
        let log = "PRAGMA wal_checkpoint(TRUNCATE)";
        self.connection.execute_batch(&format!("VACUUM; {log}")).map_err(|source| self.failed(source))
    }
}

/// Reads a row; `None` if it is no event.
pub(super) fn event(row: &Row) -> Option<Event> {
    let ts: f64 = row.get(0).ok()?;
    time(ts)?;
    let text = |index| row.get::<_, String>(index).ok();
    Some(Event { ts, session_id: text(1)?.parse().ok()?, role: text(2)?.parse().ok()?, message: text(3)? })
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

fn kind_of(directory: &Path) -> Result<Option<&'static str>, FileError> {
    filesystem::of(directory)
        .map_err(io::Error::from)
        .map_err(FileError::of("looking up the file system of", directory))
}

/// Looks what a file is, without SQLite: opening a write-ahead log where it is unsafe would already use it.
fn look(path: &Path) -> Result<Found, DatabaseError> {
    let mut head = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(20).read_to_end(&mut head).map_err(FileError::of("reading", path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(FileError::of("opening", path)(error).into()),
    };
    match head.len() {
        0 => Ok(Found::Nothing),
        // The number of the format that readers must know, at byte 19.
        20 if head.starts_with(MAGIC) => Ok(if head[19] == 2 { Found::Wal } else { Found::Rollback }),
        _ => Err(DatabaseError::Foreign(path.to_owned())),
    }
}

/// Returns whether a database shall have a write-ahead log.
fn wanted(path: &Path, journal: Journal, kind: Option<&'static str>, found: Found) -> Result<bool, DatabaseError> {
    let Some(kind) = kind else { return Ok(journal != Journal::Delete) };
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if found == Found::Wal {
        return Err(DatabaseError::HasWal { path, kind });
    }
    match journal {
        Journal::Wal => Err(DatabaseError::UnsafeWal { path, kind }),
        Journal::Auto | Journal::Delete => {
            tracing::info!(
                "{} is on a network file system ({kind}): it has a rollback journal and no write-ahead log, so readers wait for \
                 writers",
                path.display()
            );
            Ok(false)
        }
    }
}

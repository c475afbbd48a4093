//! A bounded number of connections to one database, which threads share. Reads and writes files.

use std::{
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::database::{BUSY, Database, DatabaseError, Journal};

/// Connections to a database. A thread that wants one while all are in use waits as long as SQLite waits for a lock.
#[derive(Debug)]
pub struct Pool {
    path: PathBuf,
    journal: Journal,
    most: usize,
    patience: Duration,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Database>,
    /// Number of connections that threads use.
    used: usize,
}

/// The right to one connection, which ends with it.
struct Permit<'a>(&'a Pool);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.state().used -= 1;
        self.0.freed.notify_one();
    }
}

impl Pool {
    /// Returns a pool of at most `most` connections, and at least one. None is opened yet.
    pub fn new(path: &Path, journal: Journal, most: usize) -> Self {
        let (state, freed) = (Mutex::default(), Condvar::new());
        Self { path: path.to_owned(), journal, most: most.max(1), patience: BUSY, state, freed }
    }

    /// Does something with a connection, which is opened if none is idle. One whose action fails is closed.
    ///
    /// # Errors
    /// All connections are in use for too long, none can be opened, or the action fails.
    pub fn with<T, E: From<DatabaseError>>(&self, action: impl FnOnce(&mut Database) -> Result<T, E>) -> Result<T, E> {
        let permit = self.permit()?;
        let idle = self.state().idle.pop();
        let mut database = match idle {
            Some(database) => database,
            None => Database::open(&self.path, self.journal)?,
        };
        let done = action(&mut database)?;
        self.state().idle.push(database);
        drop(permit);
        Ok(done)
    }

    fn permit(&self) -> Result<Permit<'_>, DatabaseError> {
        let waited = self.freed.wait_timeout_while(self.state(), self.patience, |state| state.used >= self.most);
        let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            let (path, most, seconds) = (self.path.clone(), self.most, self.patience.as_secs());
            return Err(DatabaseError::Exhausted { path, most, seconds });
        }
        state.used += 1;
        Ok(Permit(self))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the pool with another time that threads wait.
    #[cfg(test)]
    pub(super) fn waiting(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }
}

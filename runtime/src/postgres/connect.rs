//! Connections: made from a URL, kept in a pool, given to one unit of work at a time, and work done again when the server
//! or another transaction came between.

use super::error::{Failure, PostgresError, Scene};
use crate::place::{DatabaseOptions, DatabaseUrl};
use parking_lot::Mutex;
use postgres::config::{Host, SslMode};
use postgres::{Client, Config};
use r2d2::{HandleError, Pool};
use r2d2_postgres::PostgresConnectionManager;
use rustls::{ClientConfig, RootCertStore};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_postgres_rustls::MakeRustlsConnect;

type Manager = PostgresConnectionManager<MakeRustlsConnect>;

/// What clients call themselves to the server, unless the URL says otherwise.
const APPLICATION: &str = "rabtriever";
/// A connection on which nothing comes back is asked after this time whether it is alive, ...
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
/// ... again after this time, ...
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// ... and given up after so many questions.
const KEEPALIVE_RETRIES: u32 = 3;
/// Pauses between two tries of the same work: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// Connections to one database.
pub(super) struct Connections {
    pool: Option<Pool<Manager>>,
    options: DatabaseOptions,
    scene: Scene,
    user: String,
    /// Why the last connection that failed did.
    failed: Arc<Mutex<Option<PostgresError>>>,
}

/// Keeps what the pool would only print.
#[derive(Debug)]
struct Listener {
    scene: Scene,
    failed: Arc<Mutex<Option<PostgresError>>>,
}

impl HandleError<postgres::Error> for Listener {
    fn handle_error(&self, error: postgres::Error) {
        *self.failed.lock() = Some(self.scene.connecting(&error));
    }
}

impl Connections {
    /// Reads the URL and makes one connection, so that what is wrong is known at once.
    pub fn open(url: &DatabaseUrl, options: DatabaseOptions) -> Result<Self, PostgresError> {
        let config = config(url, options.timeout)?;
        let scene = Scene { database: described(&config), seconds: options.timeout.as_secs_f64() };
        let tls = tls(config.get_ssl_mode()).map_err(|reason| {
            let database = scene.database.clone();
            PostgresError::Unreachable { database, reason }
        })?;
        config.connect(tls.clone()).map_err(|error| scene.connecting(&error))?;
        let failed = Arc::new(Mutex::new(None));
        let listener = Listener { scene: scene.clone(), failed: Arc::clone(&failed) };
        let user = config.get_user().unwrap_or_default().to_owned();
        let pool = Pool::builder()
            .max_size(options.connections.max(1))
            // Made when they are needed: a command asks once.
            .min_idle(Some(0))
            .connection_timeout(options.timeout)
            .error_handler(Box::new(listener))
            .build_unchecked(Manager::new(config, tls));
        Ok(Self { pool: Some(pool), options, scene, user, failed })
    }

    /// For sentences.
    pub fn scene(&self) -> &Scene {
        &self.scene
    }

    /// Host, port and name, without the password.
    pub fn database(&self) -> String {
        self.scene.database.clone()
    }

    /// Who asks.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Longest that a statement may take.
    pub fn timeout(&self) -> Duration {
        self.options.timeout
    }

    /// Does a unit of work on a connection, whole transactions each. Where it met another transaction or the server went
    /// away, it is done again for as long as one may wait; the work must come to the same the second time.
    pub fn work<T>(
        &self,
        mut work: impl FnMut(&mut Client) -> Result<T, Failure>,
    ) -> Result<T, PostgresError> {
        let give_up = Instant::now() + self.options.timeout;
        let mut pause = PAUSES.0;
        loop {
            let failure = {
                let mut client = self.client(give_up)?;
                match work(&mut client) {
                    Ok(done) => return Ok(done),
                    Err(failure) => failure,
                }
            };
            if !failure.is_transient() || Instant::now() + pause > give_up {
                return Err(self.scene.statement(failure));
            }
            std::thread::sleep(pause);
            pause = (2 * pause).min(PAUSES.1);
        }
    }

    fn client(&self, give_up: Instant) -> Result<r2d2::PooledConnection<Manager>, PostgresError> {
        let database = self.database();
        let Some(pool) = &self.pool else {
            // Only while it is dropped, when nobody can ask.
            return Err(PostgresError::Unreachable { database, reason: "the program is ending".into() });
        };
        *self.failed.lock() = None;
        // A little, also for the last try.
        let wait = give_up.saturating_duration_since(Instant::now()).max(PAUSES.0);
        pool.get_timeout(wait).map_err(|_| {
            let (connections, seconds) = (self.options.connections.max(1), self.scene.seconds);
            let failed = self.failed.lock().take();
            failed.unwrap_or(PostgresError::Exhausted { database, connections, seconds })
        })
    }
}

impl Drop for Connections {
    /// Closing a connection waits for the server, which threads that drive a server's sockets must not: it is done elsewhere.
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            std::thread::spawn(move || drop(pool));
        }
    }
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connections").field("database", &self.scene.database).finish_non_exhaustive()
    }
}

fn config(url: &DatabaseUrl, timeout: Duration) -> Result<Config, PostgresError> {
    let url = url.secret();
    if !["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err(PostgresError::Url);
    }
    let mut config: Config = url.parse().map_err(|_| PostgresError::Url)?;
    let nowhere = config.get_hosts().is_empty() && config.get_hostaddrs().is_empty();
    // The rest of a password that has an `@` in it; as a host it would be printed.
    let torn = config.get_hosts().iter().any(|host| matches!(host, Host::Tcp(host) if host.contains('@')));
    if nowhere || torn {
        return Err(PostgresError::Url);
    }
    if config.get_password().is_none()
        && let Some(password) = std::env::var_os("PGPASSWORD")
    {
        config.password(password.as_encoded_bytes());
    }
    if config.get_user().is_none() {
        // As libpq does; the client would do the same, but not tell.
        let user = std::env::var("PGUSER").or_else(|_| std::env::var("USER"));
        config.user(user.as_deref().unwrap_or("postgres"));
    }
    if config.get_application_name().is_none() {
        config.application_name(APPLICATION);
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(timeout);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(timeout.max(KEEPALIVE_IDLE));
    }
    if config.get_keepalives_interval().is_none() && config.get_keepalives_retries().is_none() {
        config.keepalives_idle(KEEPALIVE_IDLE);
        config.keepalives_interval(KEEPALIVE_INTERVAL);
        config.keepalives_retries(KEEPALIVE_RETRIES);
    }
    Ok(config)
}

/// What may be printed of a URL.
fn described(config: &Config) -> String {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(host)) => host.clone(),
        Some(Host::Unix(path)) => path.display().to_string(),
        None => config.get_hostaddrs().first().map_or(String::new(), ToString::to_string),
    };
    let port = config.get_ports().first().map_or(5432, |port| *port);
    let user = config.get_user().unwrap_or_default();
    let name = config.get_dbname().unwrap_or(user);
    format!("postgres://{user}@{host}:{port}/{name}")
}

/// Certificates are checked against this machine's authorities (`SSL_CERT_FILE`, `SSL_CERT_DIR`) wherever TLS is spoken.
fn tls(mode: SslMode) -> Result<MakeRustlsConnect, String> {
    let mut roots = RootCertStore::empty();
    if mode != SslMode::Disable {
        // Without any, TLS fails where it is met, and says so.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A password in a log is read by everybody who may read logs.
    #[test]
    fn no_sentence_has_the_password_in_it() {
        let limit = Duration::from_secs(1);
        for url in [
            "postgres://u:hunter2@/x",
            "postgres://u:hun?ter2=x@h/x",
            "postgres://u:hun@ter2@h/x",
            "postgres://u:hun@ter2:x@h:hunter2/x",
            "postgres://u@h/x?hunter2=1",
            "hunter2",
            "host=h password=hunter2",
        ] {
            let said = match config(&url.parse().unwrap(), limit) {
                Ok(config) => described(&config),
                Err(refused) => refused.to_string(),
            };
            assert!(!said.contains("hun") && !said.contains("ter2"), "{url}: {said}");
        }
        let config =
            config(&"postgresql://u:hunter2@h:77/x?sslmode=require".parse().unwrap(), limit).unwrap();
        assert_eq!(described(&config), "postgres://u@h:77/x");
        assert_eq!(config.get_connect_timeout(), Some(&limit));
    }
}

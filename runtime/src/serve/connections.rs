//! Sockets: at most so many connections, none that sends its headers a byte a minute or takes no answers, and an end that
//! answers what has begun.

use super::App;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};
use tokio_io_timeout::TimeoutStream;

/// Limits on connections.
#[derive(Debug, Clone)]
pub struct Connections {
    /// Open at once; further ones wait to be accepted.
    pub most: usize,
    /// Time for a request's headers.
    pub headers: Duration,
    /// Time in which a client takes something of its answer.
    pub answers: Duration,
    /// Time for the requests that have begun when the server is told to stop.
    pub grace: Duration,
}

impl Default for Connections {
    fn default() -> Self {
        let (headers, answers, grace) =
            (Duration::from_secs(10), Duration::from_secs(30), Duration::from_secs(10));
        Self { most: 512, headers, answers, grace }
    }
}

/// What the server is told from outside.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// Stop; the second time, without waiting for what has begun.
    pub stop: Arc<Notify>,
    /// Open bundle and index anew.
    pub reload: Arc<Notify>,
}

/// Answers until it is told to stop.
pub async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    connections: Connections,
    signals: Signals,
) -> io::Result<()> {
    let router: Router = super::router(Arc::clone(&app)).layer(DefaultBodyLimit::max(app.limits.body));
    // HTTP/1 alone: waiting for what the first bytes say has no limit in time.
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(connections.headers);
    let places = Arc::new(Semaphore::new(connections.most));
    let graceful = GracefulShutdown::new();
    let notice = app.notice();
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            accepted = accepted => accepted,
            () = signals.stop.notified() => break,
            () = signals.reload.notified() => {
                let app = Arc::clone(&app);
                tokio::task::spawn_blocking(move || match app.reload() {
                    Ok(()) => notice("bundle and index are loaded anew"),
                    Err(error) => {
                        notice(&format!("goes on with what is loaded: {}", models::error::sentence(error.as_ref())));
                    }
                });
                continue;
            }
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // A client that left already, or no file descriptor: the latter passes when others leave.
                notice(&format!("cannot accept a connection: {error}"));
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Small answers should not wait for company.
        let _ = stream.set_nodelay(true);
        // hyper waits for a client that reads nothing as long as that likes.
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(connections.answers));
        let service = TowerToHyperService::new(router.clone());
        let connection = builder.serve_connection(TokioIo::new(Box::pin(stream)), service).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // Whatever ends a connection ends this one only.
            let _ = connection.await;
            drop(place);
        });
    }
    app.stop();
    drop(listener);
    let ending = async {
        let _ = tokio::time::timeout(connections.grace, graceful.shutdown()).await;
        let saving = tokio::task::spawn_blocking(move || app.loaded().retriever.save());
        if let Ok(Err(error)) = saving.await {
            notice(&format!("the graph is not saved: {error}"));
        }
    };
    tokio::select! {
        () = ending => {}
        () = signals.stop.notified() => notice("told to stop twice: what has begun is not answered"),
    }
    Ok(())
}

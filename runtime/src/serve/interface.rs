//! The interface in OpenAPI's terms. What every route has in common, refusals and the key, is added here, so that no route
//! can leave one out.

use super::refusal::Dialect;
use super::{cohere, jina, native, openai, system, tei};
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, PathItem};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{Modify, OpenApi};

/// Routes that are open to everybody.
pub const OPEN: [&str; 3] = ["/health", "/ping", "/ready"];

/// Name of the key among the security schemes.
const KEY: &str = "key";

/// The interface.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Rabtriever",
        description = "Retrieval by judgement: documents that answer a query, not those that look like it."
    ),
    paths(
        native::query,
        native::add,
        native::list,
        native::get,
        native::delete,
        native::remove,
        native::fields,
        native::stats,
        tei::root,
        tei::embed,
        tei::similarity,
        tei::rerank,
        tei::tokenize,
        tei::info,
        openai::embeddings,
        openai::models,
        openai::model,
        cohere::embed_v1,
        cohere::embed_v2,
        cohere::rerank_v1,
        cohere::rerank_v2,
        system::health,
        system::ping,
        system::ready,
        system::metrics
    ),
    components(schemas(tei::ErrorBody, openai::ErrorBody, cohere::ErrorBody, jina::RerankResponse)),
    modifiers(&Common)
)]
pub struct Interface;

/// What all routes have in common.
struct Common;

impl Modify for Common {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("The key that the server was started with, where it was (--api-key-file)"))
            .build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme(KEY, SecurityScheme::Http(scheme));
        for (path, item) in &mut document.paths.paths {
            for operation in operations(item) {
                add_common(path, operation);
            }
        }
    }
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.delete].into_iter().flatten()
}

fn add_common(path: &str, operation: &mut Operation) {
    let open = OPEN.contains(&path);
    let body = operation.request_body.is_some();
    let parameters = operation.parameters.as_ref().is_some_and(|parameters| !parameters.is_empty());
    let refusals = [
        (400, body || parameters, "Not what the route reads"),
        (401, !open, "The key is missing or wrong"),
        (403, !open, "The request means another machine (--allow-host)"),
        (413, body, "More than is taken at once, or than can be done in time"),
        (422, body || parameters, "Not possible"),
        (429, !open, "All places are taken"),
        (500, !open, "It failed"),
        (503, !open, "The server is stopping, or the database does not answer"),
        (504, !open, "It took too long"),
    ];
    for (status, happens, description) in refusals {
        let status = status.to_string();
        if happens && !operation.responses.responses.contains_key(&status) {
            let response = refusal(path, &status, description);
            operation.responses.responses.insert(status, RefOr::T(response));
        }
    }
    if !open {
        // Where no key was set, none is needed.
        let none = SecurityRequirement::default();
        operation.security = Some(vec![SecurityRequirement::new(KEY, Vec::<String>::new()), none]);
    }
}

fn refusal(path: &str, status: &str, description: &str) -> Response {
    let schema = match Dialect::of(path) {
        Dialect::Tei => "Refusal",
        Dialect::OpenAi => "OpenAiRefusal",
        Dialect::Cohere => "CohereRefusal",
    };
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).build();
    let response = ResponseBuilder::new().description(description).content("application/json", content);
    let header = |description: &str, kind| {
        HeaderBuilder::new()
            .schema(Some(ObjectBuilder::new().schema_type(kind)))
            .description(Some(description))
            .build()
    };
    match status {
        "401" => response.header(
            "WWW-Authenticate",
            header("Tells a wrong key (`invalid_token`) from none", Type::String),
        ),
        "429" | "503" => response.header("Retry-After", header("Seconds to wait", Type::Integer)),
        _ => response,
    }
    .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// A route that the description lacks, or a description of a route that is gone, misleads whoever generates a client.
    #[test]
    fn the_description_lists_the_routes() {
        let described: Vec<String> = Interface::openapi().paths.paths.keys().cloned().collect();
        let mut routes: Vec<&str> = include_str!("mod.rs")
            .split(".route(\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            // The same routes by other names, for clients that leave out the version.
            .filter(|route| !["/openapi.json", "/embeddings", "/models"].contains(route))
            .collect();
        routes.sort_unstable();
        routes.dedup();
        assert_eq!(described, routes);
    }

    /// Generators make a function of each operation's name: of two with one name, one is lost.
    #[test]
    fn operations_have_names_of_their_own_and_tell_every_refusal() {
        let mut document = Interface::openapi();
        let mut names = BTreeSet::new();
        for (path, item) in &mut document.paths.paths {
            for operation in operations(item) {
                let name = operation.operation_id.clone().unwrap();
                assert!(names.insert(name.clone()), "{name} is there twice");
                let statuses = &operation.responses.responses;
                assert!(statuses.contains_key("200"), "{path}");
                assert_eq!(operation.security.is_none(), OPEN.contains(&path.as_str()), "{path}");
                for status in ["401", "403", "429", "500", "503", "504"] {
                    let listed = statuses.contains_key(status) || path == "/ready" && status == "503";
                    assert!(listed || OPEN.contains(&path.as_str()), "{path} lacks {status}");
                }
            }
        }
    }
}

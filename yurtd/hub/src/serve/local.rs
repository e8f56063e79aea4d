//! Answers without the API server: lists as last known, and what the hub keeps for the time without a link.

use bytes::Bytes;
use http::Response;

use super::plan::{Asked, Change};
use super::read::{self, LastKnown};
use super::respond::{self, Failure};
use super::{Body, Hub};
use crate::caller::Permit;
use crate::offline::{Answer, Row};
use crate::request::RequestInfo;

/// Answers; `body` is there when [`Row::needs_body`] says so. `change` is what the API server would have been asked
/// for: what was remembered of its answers was asked for the same way.
pub(crate) async fn answer(
    hub: &Hub,
    permit: &Permit,
    asked: &Asked,
    change: Option<&Change>,
    body: Option<&Bytes>,
) -> Result<Response<Body>, Failure> {
    // The encodings that the client takes, whatever the API server would be asked for.
    let takes = asked.info.accept.view_encodings();
    let asked = asked.for_change(change);
    let (parts, row) = (&asked.parts, asked.row);
    let info = &asked.info.without_api_server(parts);
    if let Some(collection) = &info.collection {
        let passed_by = |version| hub.offline.newer_list(permit, info, parts, version);
        match read::last_known(hub, permit, collection, &takes, passed_by).await? {
            Some(LastKnown::Response(response)) => return Ok(response),
            Some(LastKnown::Answer(answer)) => {
                return Ok(respond::answer(filtered(hub, permit, info, Row::List, answer)?));
            }
            None => {}
        }
    }
    let answer = hub.offline.answer(permit, info, row, parts, body).await?;
    Ok(respond::answer(filtered(hub, permit, info, row, answer)?))
}

/// What kubelet is answered without the API server, changed like what it reads from views.
fn filtered(
    hub: &Hub,
    permit: &Permit,
    info: &RequestInfo,
    row: Row,
    answer: Answer,
) -> Result<Answer, Failure> {
    let Some(target) = info.resource() else { return Ok(answer) };
    let json = answer.content_type.starts_with("application/json") && answer.content_encoding.is_none();
    if !permit.is_node() || !json {
        return Ok(answer);
    }
    let Some(filter) = hub.filters.for_kubelet(&target.resource, !hub.link.is_online()) else {
        return Ok(answer);
    };
    let body = match row {
        Row::Object => filter.single(answer.body)?,
        Row::List => filter.list(answer.body)?,
        _ => return Ok(answer),
    };
    Ok(Answer { body, ..answer })
}

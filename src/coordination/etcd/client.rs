//! One connection to one etcd server, and the requests of the store on it.
//!
//! Invariants: whoever drops a request drops its answer, so that no answer is taken for a later request's; answers
//! are bounded; servers of another etcd cluster than the first one that answered are not used. Absent on purpose:
//! repeating anything, time limits, and the choice of the server (the caller's).

use super::core::{Answer, Request};
use super::inspect::EndpointFacts;
use super::rpc::{
    Answered, AuthenticateRequest, AuthenticateResponse, Compare, DeleteRangeRequest, DeleteRangeResponse, Empty,
    Header, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveResponse, LeaseRequest, LeaseRevokeResponse,
    MemberListResponse, Operation, PutRequest, RangeRequest, RangeResponse, RequestOp, StatusResponse, Target,
    TxnRequest, TxnResponse, WatchCreateRequest, WatchKind, WatchRequest, WatchResponse,
};
use super::view::{Key, Names, Route, holder_value, route_value};
use crate::config::Secret;
use futures::{StreamExt, stream};
use http::uri::PathAndQuery;
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

/// Keys read at most; a cluster has three and one per proxy.
const KEYS_MAX: i64 = 1_000;
/// Longest answer, bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// etcd, or the way to it, says so.
    #[error("{}: {}", .0.code(), .0.message())]
    Status(#[from] Status),
    /// No connection.
    #[error("no connection: {0}")]
    Connect(String),
    /// The time limit passed.
    #[error("no answer within {0:?}")]
    Silence(Duration),
    /// The server belongs to another etcd.
    #[error("it is a member of another etcd cluster than the endpoint that answered first")]
    OtherCluster,
    /// The answer lacks something.
    #[error("the answer is incomplete")]
    Incomplete,
    /// The register has more keys than any cluster has proxies.
    #[error("there are more than {KEYS_MAX} keys below the prefix")]
    TooMany,
}

/// What all connections share.
#[derive(Debug)]
pub struct Shared {
    /// The keys.
    pub names: Names,
    /// The time to live asked for.
    pub ttl: Duration,
    /// User and password.
    pub login: Option<(String, Secret)>,
    /// Told when a key may have changed.
    pub changed: Arc<Notify>,
    /// The etcd cluster that answered first; 0: none yet.
    pub cluster: AtomicU64,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    shared: Arc<Shared>,
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
    _watch: AbortOnDropHandle<()>,
}

impl Connection {
    /// Connects, logs in, and begins to watch.
    ///
    /// # Errors
    /// When nobody answers, or the login is refused.
    pub async fn open(shared: Arc<Shared>, endpoint: &Endpoint) -> Result<Self, Fault> {
        let channel = endpoint.connect().await.map_err(|e| Fault::Connect(causes(&e)))?;
        let token = match &shared.login {
            Some((user, password)) => Some(login(&channel, user, password).await?),
            None => None,
        };
        let watch = tokio::spawn(watch(channel.clone(), token.clone(), Arc::clone(&shared)));
        Ok(Self { shared, channel, token, _watch: AbortOnDropHandle::new(watch) })
    }

    /// Sends one request and waits for its answer.
    ///
    /// # Errors
    /// When there is none, or an error; the request may have been done all the same.
    pub async fn perform(&self, request: &Request) -> Result<Answer, Fault> {
        match request {
            Request::Grant { .. } => {
                let ttl = i64::try_from(self.shared.ttl.as_secs()).unwrap_or(i64::MAX);
                let granted: LeaseGrantResponse =
                    self.unary("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest { ttl }).await?;
                Ok(Answer::Granted { lease: granted.id })
            }
            Request::Renew { lease } => self.renew(*lease).await,
            Request::Read => self.read().await,
            Request::Release { lease } => self.release(*lease).await,
            Request::Forget { holder } => done(self.delete(holder.clone()).await),
            Request::Route(route) => self.write(route_transaction(&self.shared, *route)).await,
            Request::Change { lease } => self.write(change_transaction(&self.shared, *lease)).await,
            Request::Order { lease } => self.write(order_transaction(&self.shared.names, *lease)).await,
            Request::Record { record, state, change } => {
                let value = serde_json::to_vec(record).map_err(|e| Status::internal(e.to_string()))?;
                self.write(record_transaction(&self.shared.names, value, (*state, *change))).await
            }
        }
    }

    /// Version, cluster and, where we may ask for it, the number of members.
    ///
    /// # Errors
    /// When it does not say.
    pub async fn status(&self) -> Result<EndpointFacts, Fault> {
        let request = with_token(Empty {}, self.token.as_ref());
        let status: StatusResponse = unary(&self.channel, "/etcdserverpb.Maintenance/Status", request).await?;
        let request = with_token(Empty {}, self.token.as_ref());
        let list: Result<MemberListResponse, _> =
            unary(&self.channel, "/etcdserverpb.Cluster/MemberList", request).await;
        let cluster = status.header.ok_or(Fault::Incomplete)?.cluster_id;
        Ok(EndpointFacts { version: status.version, cluster, members: list.ok().map(|list| list.members.len()) })
    }

    /// Whether each of our keys may be written: the condition holds never, and rights are looked at before it.
    ///
    /// # Errors
    /// What etcd says if not.
    pub async fn may_write(&self) -> Result<(), Fault> {
        let names = &self.shared.names;
        let never = Compare::equal(names.state(), Target::CreateRevision(-1));
        let keys = [names.state(), names.change(), names.order(), names.route(), names.holder(0)];
        let put = |key| RequestOp { request: Some(Operation::Put(PutRequest { key, value: Vec::new(), lease: 0 })) };
        let request = TxnRequest { compare: vec![never], success: keys.map(put).into() };
        self.unary::<_, TxnResponse>("/etcdserverpb.KV/Txn", request).await.map(drop)
    }

    async fn renew(&self, lease: i64) -> Result<Answer, Fault> {
        let path = "/etcdserverpb.Lease/LeaseKeepAlive";
        let request = with_token(stream::once(async move { LeaseRequest { id: lease } }), self.token.as_ref());
        let mut answers: Streaming<LeaseKeepAliveResponse> = streaming(&self.channel, path, request).await?;
        let renewed = answers.message().await?.ok_or(Fault::Incomplete)?;
        self.same_cluster(renewed.header())?;
        Ok(if renewed.ttl > 0 { Answer::Renewed } else { Answer::Gone })
    }

    /// The holder key first: others need not wait for the etcd lease once it is gone.
    async fn release(&self, lease: i64) -> Result<Answer, Fault> {
        self.delete(self.shared.names.holder(lease)).await?;
        done(self.unary::<_, LeaseRevokeResponse>("/etcdserverpb.Lease/LeaseRevoke", LeaseRequest { id: lease }).await)
    }

    async fn delete(&self, key: Vec<u8>) -> Result<DeleteRangeResponse, Fault> {
        self.unary("/etcdserverpb.KV/DeleteRange", DeleteRangeRequest { key }).await
    }

    async fn read(&self) -> Result<Answer, Fault> {
        let (key, range_end) = self.shared.names.all();
        let request = RangeRequest { key, range_end, limit: KEYS_MAX };
        let read: RangeResponse = self.unary("/etcdserverpb.KV/Range", request).await?;
        if read.more {
            return Err(Fault::TooMany);
        }
        let keys: Vec<Key> = read.kvs.into_iter().map(Key::from).collect();
        Ok(Answer::Read(self.shared.names.view(&keys)))
    }

    async fn write(&self, transaction: TxnRequest) -> Result<Answer, Fault> {
        let asked: Result<TxnResponse, Fault> = self.unary("/etcdserverpb.KV/Txn", transaction).await;
        match asked {
            Ok(answer) if !answer.succeeded => Ok(Answer::Refused),
            other => done(other),
        }
    }

    /// One request, one answer, of the etcd cluster that all endpoints belong to.
    async fn unary<Q: Message + 'static, A: Message + Answered + Default + 'static>(
        &self,
        path: &'static str,
        message: Q,
    ) -> Result<A, Fault> {
        let answer: A = unary(&self.channel, path, with_token(message, self.token.as_ref())).await?;
        self.same_cluster(answer.header())?;
        Ok(answer)
    }

    fn same_cluster(&self, header: Option<&Header>) -> Result<(), Fault> {
        let header = header.ok_or(Fault::Incomplete)?;
        let first = self.shared.cluster.compare_exchange(0, header.cluster_id, Ordering::SeqCst, Ordering::SeqCst);
        if first.is_err_and(|first| first != header.cluster_id) {
            return Err(Fault::OtherCluster);
        }
        Ok(())
    }
}

/// A write whose compared values were found: done, unless its etcd lease was not there.
fn done<A: Answered>(answer: Result<A, Fault>) -> Result<Answer, Fault> {
    match answer {
        Ok(answer) => Ok(Answer::Done(answer.header().ok_or(Fault::Incomplete)?.revision)),
        Err(Fault::Status(status)) if status.code() == Code::NotFound => Ok(Answer::Gone),
        Err(fault) => Err(fault),
    }
}

/// One put; with another one for the holder key, which must not be there yet, if something is to be held.
fn transaction(mut compare: Vec<Compare>, put: PutRequest, holder: Option<PutRequest>) -> TxnRequest {
    compare.extend(holder.iter().map(|put| Compare::absent(put.key.clone())));
    let operation = |put| RequestOp { request: Some(Operation::Put(put)) };
    TxnRequest { compare, success: [Some(put), holder].into_iter().flatten().map(operation).collect() }
}

fn holder(shared: &Shared, lease: i64, changes: bool) -> Option<PutRequest> {
    Some(PutRequest { key: shared.names.holder(lease), value: holder_value(lease, shared.ttl, changes), lease: 0 })
}

fn route_transaction(shared: &Shared, route: Route) -> TxnRequest {
    let names = &shared.names;
    let unchanged = Compare::equal(names.state(), Target::ModRevision(route.state));
    let put = PutRequest { key: names.route(), value: route_value(route.state), lease: route.lease };
    transaction(vec![Compare::absent(names.change()), unchanged], put, holder(shared, route.lease, false))
}

fn change_transaction(shared: &Shared, lease: i64) -> TxnRequest {
    let names = &shared.names;
    let mut compare = vec![Compare::absent(names.change())];
    compare.extend(names.other_routes().into_iter().map(Compare::all_absent));
    let put = PutRequest { key: names.change(), value: names.me().as_bytes().to_vec(), lease };
    transaction(compare, put, holder(shared, lease, true))
}

fn order_transaction(names: &Names, lease: i64) -> TxnRequest {
    let put = PutRequest { key: names.order(), value: names.me().as_bytes().to_vec(), lease };
    transaction(vec![Compare::absent(names.order())], put, None)
}

fn record_transaction(names: &Names, value: Vec<u8>, (state, change): (i64, i64)) -> TxnRequest {
    let ours = Compare::equal(names.change(), Target::CreateRevision(change));
    let unchanged = Compare::equal(names.state(), Target::ModRevision(state));
    transaction(vec![ours, unchanged], PutRequest { key: names.state(), value, lease: 0 }, None)
}

impl From<super::rpc::KeyValue> for Key {
    fn from(key: super::rpc::KeyValue) -> Self {
        Self {
            name: key.key,
            value: key.value,
            created: key.create_revision,
            changed: key.mod_revision,
            lease: key.lease,
        }
    }
}

fn with_token<T>(message: T, token: Option<&MetadataValue<Ascii>>) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("token", token.clone());
    }
    // A server without a leader says so at once instead of waiting for one.
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    request
}

async fn ready(channel: &Channel) -> Result<Grpc<Channel>, Status> {
    let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(ANSWER_BYTES_MAX);
    grpc.ready().await.map_err(|e| Status::unavailable(causes(&e)))?;
    Ok(grpc)
}

async fn unary<Q: Message + 'static, A: Message + Default + 'static>(
    channel: &Channel,
    path: &'static str,
    request: tonic::Request<Q>,
) -> Result<A, Status> {
    let mut grpc = ready(channel).await?;
    let answer = grpc.unary(request, PathAndQuery::from_static(path), ProstCodec::default()).await?;
    Ok(answer.into_inner())
}

async fn streaming<S, A>(
    channel: &Channel,
    path: &'static str,
    request: tonic::Request<S>,
) -> Result<Streaming<A>, Status>
where
    S: futures::Stream<Item: Message + 'static> + Send + 'static,
    A: Message + Default + 'static,
{
    let mut grpc = ready(channel).await?;
    let answers = grpc.streaming(request, PathAndQuery::from_static(path), ProstCodec::default()).await?;
    Ok(answers.into_inner())
}

async fn login(channel: &Channel, user: &str, password: &Secret) -> Result<MetadataValue<Ascii>, Fault> {
    let request = AuthenticateRequest { name: user.to_owned(), password: password.expose().to_owned() };
    let path = "/etcdserverpb.Auth/Authenticate";
    let answer: AuthenticateResponse = unary(channel, path, tonic::Request::new(request)).await?;
    answer.token.parse().map_err(|_| Fault::Incomplete)
}

/// Says when a key changes, for as long as the server tells.
async fn watch(channel: Channel, token: Option<MetadataValue<Ascii>>, shared: Arc<Shared>) {
    let (key, range_end) = shared.names.all();
    let create = WatchKind::Create(WatchCreateRequest { key, range_end });
    let create = WatchRequest { request_union: Some(create) };
    // The stream must not end, or the watch would.
    let requests = stream::once(async move { create }).chain(stream::pending());
    let request = with_token(requests, token.as_ref());
    let Ok(mut answers) = streaming::<_, WatchResponse>(&channel, "/etcdserverpb.Watch/Watch", request).await else {
        return;
    };
    while let Ok(Some(_)) = answers.message().await {
        shared.changed.notify_one();
    }
}

/// An error with what caused it: tonic's own text is only "transport error".
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

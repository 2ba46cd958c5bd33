//! How much one caller, or one address, may ask: requests in a time, live reads at once, and tokens that are not accepted.
//! What is counted is bounded in memory: of the callers and addresses that are not seen for a while nothing is kept.

use std::collections::HashMap;
use std::convert::Infallible;
use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bourn_protocol::ErrorCode;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http::{HeaderMap, Request};
use ipnet::IpNet;
use moka::sync::Cache;
use pin_project_lite::pin_project;
use tokio_util::either::Either;
use tower_layer::Layer;
use tower_service::Service;

use super::{Admitted, Answer, EarlyOr, Outcome, add_common_headers, early, resuming};
use crate::config::{Limits, Rate, RateConfig};
use crate::http::{ApiError, ReplyBody, RequestBody};

/// Most callers and addresses that are counted.
const COUNTED: u64 = 100_000;
/// How long one that asks nothing is remembered: longer than any limit needs to recover.
const REMEMBERED: Duration = Duration::from_secs(3_600);

/// The address of the socket that a request came over.
#[derive(Debug, Clone, Copy)]
pub struct PeerAddress(pub IpAddr);

/// What is counted apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Caller {
    Subject(Arc<str>),
    Address(IpAddr),
}

/// The counts of all callers.
pub struct CallerLimits {
    requests: Option<Quota>,
    failures: Option<Quota>,
    live_per_subject: usize,
    live_per_address: usize,
    trusted: Vec<IpNet>,
    counted: Cache<Caller, Arc<DefaultDirectRateLimiter>>,
    failing: Cache<IpAddr, Arc<Failures>>,
    live: Arc<Mutex<HashMap<Caller, usize>>>,
    limits: Arc<Limits>,
}

/// The tokens of one address that were not accepted.
struct Failures {
    limiter: DefaultDirectRateLimiter,
    /// Nothing is verified for the address before this time.
    refused_until: Mutex<Instant>,
}

fn quota(rate: Rate, burst: Option<NonZeroU32>) -> Option<Quota> {
    let quota = Quota::with_period(rate.period() / rate.count.get())?;
    Some(quota.allow_burst(burst.unwrap_or(rate.count)))
}

fn remembering<K: Hash + Eq + Send + Sync + 'static, V: Clone + Send + Sync + 'static>() -> Cache<K, V> {
    Cache::builder().max_capacity(COUNTED).time_to_idle(REMEMBERED).build()
}

impl CallerLimits {
    /// The limits of a configuration; `trusted` are the proxies whose word on an address counts.
    #[must_use]
    pub fn new(config: &RateConfig, trusted: &[IpNet], limits: Arc<Limits>) -> CallerLimits {
        CallerLimits {
            requests: config.requests.and_then(|rate| quota(rate, config.burst)),
            failures: config.auth_failures.and_then(|rate| quota(rate, None)),
            live_per_subject: config.live_per_subject.unwrap_or(usize::MAX),
            live_per_address: config.live_per_ip.unwrap_or(usize::MAX),
            trusted: trusted.to_vec(),
            counted: remembering(),
            failing: remembering(),
            live: Arc::default(),
            limits,
        }
    }

    /// Whether anything is counted at all.
    #[must_use]
    pub fn any(&self) -> bool {
        self.requests.is_some()
            || self.failures.is_some()
            || self.live_per_subject.min(self.live_per_address) < usize::MAX
    }

    /// The address that a request is counted for: that of the socket, or what proxies that are trusted say in front of it.
    fn address<B>(&self, request: &Request<B>) -> Option<IpAddr> {
        let PeerAddress(peer) = *request.extensions().get()?;
        Some(network(self.behind_proxies(peer, request.headers())))
    }

    fn behind_proxies(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let is_trusted = |address: &IpAddr| self.trusted.iter().any(|network| network.contains(address));
        let mut address = peer.to_canonical();
        if !is_trusted(&address) {
            return address;
        }
        let values = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
        let said: Vec<&str> = values.flat_map(|value| value.split(',')).map(str::trim).collect();
        // From the nearest on; the first one that is not trusted is the client, and what it says counts for nothing.
        for text in said.into_iter().rev() {
            let Ok(next) = text.parse::<IpAddr>() else { break };
            address = next.to_canonical();
            if !is_trusted(&address) {
                break;
            }
        }
        address
    }

    fn check(&self, callers: &[Caller], is_live: bool) -> Result<Option<LivePlace>, ApiError> {
        if let (Some(quota), Some(caller)) = (self.requests, callers.first()) {
            let limiter = self.counted.get_with_by_ref(caller, || Arc::new(RateLimiter::direct(quota)));
            if limiter.check().is_err() {
                let message = "there are more requests than may come in this time; come back a little later";
                return Err(ApiError::new(ErrorCode::TooManyRequests, message));
            }
        }
        if !is_live {
            return Ok(None);
        }
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let most = |caller: &Caller| match caller {
            Caller::Subject(_) => self.live_per_subject,
            Caller::Address(_) => self.live_per_address,
        };
        if callers.iter().any(|caller| live.get(caller).is_some_and(|count| *count >= most(caller))) {
            let message =
                "there are as many live reads as there may be at once; end one first, or come back later";
            return Err(ApiError::new(ErrorCode::TooManyStreams, message));
        }
        for caller in callers {
            *live.entry(caller.clone()).or_default() += 1;
        }
        Ok(Some(LivePlace { callers: callers.into(), live: self.live.clone() }))
    }

    fn is_refused(&self, address: IpAddr) -> bool {
        self.failing.get(&address).is_some_and(|failures| {
            Instant::now() < *failures.refused_until.lock().unwrap_or_else(PoisonError::into_inner)
        })
    }

    /// A token of this address was not accepted.
    fn failed(&self, address: IpAddr) {
        let Some(quota) = self.failures else { return };
        let make = || {
            Arc::new(Failures {
                limiter: RateLimiter::direct(quota),
                refused_until: Mutex::new(Instant::now()),
            })
        };
        let failures = self.failing.get_with(address, make);
        if failures.limiter.check().is_err() {
            let until = Instant::now() + quota.replenish_interval();
            *failures.refused_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
        }
    }
}

/// An IPv6 client has a network of 2^64 addresses.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
    }
}

/// One live read, counted until it ends.
#[derive(Debug)]
struct LivePlace {
    callers: Box<[Caller]>,
    live: Arc<Mutex<HashMap<Caller, usize>>>,
}

impl Drop for LivePlace {
    fn drop(&mut self) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        for caller in &self.callers {
            if let Some(count) = live.get_mut(caller) {
                *count -= 1;
                if *count == 0 {
                    live.remove(caller);
                }
            }
        }
    }
}

/// Before tokens are verified: refuses addresses that show too many that are not accepted.
#[derive(Clone)]
pub(in crate::http) struct FailuresLayer(pub(in crate::http) Arc<CallerLimits>);

impl<S> Layer<S> for FailuresLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, limits: self.0.clone() }
    }
}

/// See [`FailuresLayer`].
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
    limits: Arc<CallerLimits>,
}

impl<S> Service<Request<RequestBody>> for Guarded<S>
where
    S: Service<Request<RequestBody>, Response = Answer, Error = Infallible>,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = EarlyOr<Either<S::Future, CountingFailures<S::Future>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        let address = self.limits.failures.and_then(|_| self.limits.address(&request));
        let Some(address) = address else { return Either::Right(Either::Left(self.inner.call(request))) };
        if self.limits.is_refused(address) {
            let message =
                "too many tokens of this address were not accepted; come back later with one that is";
            let error = ApiError::new(ErrorCode::TooManyRequests, message);
            return early(refusal(error, resuming::is_resuming(&request), &self.limits.limits));
        }
        let answer = self.inner.call(request);
        Either::Right(Either::Right(CountingFailures { answer, address, limits: self.limits.clone() }))
    }
}

pin_project! {
    /// An answer that counts as a failure of its address if its token was not accepted.
    pub struct CountingFailures<F> {
        #[pin]
        answer: F,
        address: IpAddr,
        limits: Arc<CallerLimits>,
    }
}

impl<F: Future<Output = Outcome>> Future for CountingFailures<F> {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let this = self.project();
        let answer = ready!(this.answer.poll(cx))?;
        if answer.not_accepted {
            this.limits.failed(*this.address);
        }
        Poll::Ready(Ok(answer))
    }
}

fn refusal(error: ApiError, resuming: bool, limits: &Limits) -> Answer {
    let mut reply = resuming::reply(error, resuming, limits);
    add_common_headers(reply.headers_mut());
    Answer { endpoint: "refused", reply, not_accepted: false }
}

/// Once the caller is known: counts its requests and its live reads.
#[derive(Clone)]
pub(in crate::http) struct LimitsLayer(pub(in crate::http) Arc<CallerLimits>);

impl<S> Layer<S> for LimitsLayer {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited { inner, any: self.0.any(), limits: self.0.clone() }
    }
}

/// See [`LimitsLayer`].
#[derive(Clone)]
pub struct Limited<S> {
    inner: S,
    any: bool,
    limits: Arc<CallerLimits>,
}

impl<S> Service<Admitted> for Limited<S>
where
    S: Service<Admitted, Response = Answer, Error = Infallible>,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = EarlyOr<Holding<S::Future>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, admitted: Admitted) -> Self::Future {
        if !self.any {
            return Either::Right(Holding { answer: self.inner.call(admitted), place: None });
        }
        let request = &admitted.request;
        let subject = admitted.rights.subject().cloned().map(Caller::Subject);
        let address = self.limits.address(request).map(Caller::Address);
        // The subject first: it is what requests are counted for, where there is one.
        let callers: Vec<Caller> = subject.into_iter().chain(address).collect();
        let is_live = request.uri().query().is_some_and(|query| query.contains("live="));
        match self.limits.check(&callers, is_live) {
            Ok(place) => Either::Right(Holding { answer: self.inner.call(admitted), place }),
            Err(error) => early(refusal(error, resuming::is_resuming(request), &self.limits.limits)),
        }
    }
}

pin_project! {
    /// An answer that holds its place until its body ends.
    pub struct Holding<F> {
        #[pin]
        answer: F,
        place: Option<LivePlace>,
    }
}

impl<F: Future<Output = Outcome>> Future for Holding<F> {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let this = self.project();
        let mut answer = ready!(this.answer.poll(cx))?;
        if let (ReplyBody::Events(_, held), Some(place)) = (answer.reply.body_mut(), this.place.take()) {
            *held = Some(Box::new(place));
        }
        Poll::Ready(Ok(answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, SettingsLayer};

    fn limits(table: &str, trusted: &[&str]) -> CallerLimits {
        let limits = Arc::new(Config::load(SettingsLayer::default(), None).unwrap().limits);
        let trusted: Vec<IpNet> = trusted.iter().map(|text| text.parse().unwrap()).collect();
        CallerLimits::new(&toml::from_str(table).unwrap(), &trusted, limits)
    }

    fn subject(name: &str) -> Caller {
        Caller::Subject(name.into())
    }

    #[test]
    fn requests_are_counted_for_each_caller() {
        let limits = limits("requests = '1/h'\nburst = 2", &[]);
        for _ in 0..2 {
            assert!(limits.check(&[subject("alice")], false).is_ok());
        }
        assert_eq!(limits.check(&[subject("alice")], false).unwrap_err().code(), ErrorCode::TooManyRequests);
        assert!(limits.check(&[subject("bob")], false).is_ok());
        assert!(limits.check(&[], false).is_ok(), "a caller without a name or an address");
    }

    #[test]
    fn live_reads_are_counted_until_they_end() {
        let limits = limits("live_per_subject = 1\nlive_per_ip = 2", &[]);
        let address = Caller::Address([10, 0, 0, 1].into());
        let alice = limits.check(&[subject("alice"), address.clone()], true).unwrap();
        let too_many = limits.check(&[subject("alice"), address.clone()], true).unwrap_err();
        assert_eq!(too_many.code(), ErrorCode::TooManyStreams);
        let bob = limits.check(&[subject("bob"), address.clone()], true).unwrap();
        assert!(limits.check(&[subject("carol"), address.clone()], true).is_err(), "of one address");
        assert!(limits.check(&[subject("carol")], true).is_ok());
        drop(alice);
        assert!(limits.check(&[subject("alice"), address], true).is_ok());
        drop(bob);
        assert!(limits.live.lock().unwrap().is_empty(), "nothing is kept of those that have ended");
    }

    #[test]
    fn an_address_that_guesses_is_not_listened_to_for_a_while() {
        let limits = limits("auth_failures = '2/h'", &[]);
        let (one, other) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        for _ in 0..2 {
            limits.failed(one);
            assert!(!limits.is_refused(one));
        }
        limits.failed(one);
        assert!(limits.is_refused(one) && !limits.is_refused(other));
    }

    #[test]
    fn only_proxies_that_are_trusted_say_where_a_request_comes_from() {
        let limits = limits("", &["10.0.0.0/8", "fd00::/8"]);
        let address = |peer: &str, said: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in said {
                headers.append("x-forwarded-for", http::HeaderValue::from_static(value));
            }
            network(limits.behind_proxies(peer.parse().unwrap(), &headers)).to_string()
        };
        assert_eq!(address("203.0.113.9", &["1.2.3.4"]), "203.0.113.9", "a client's own word");
        assert_eq!(address("10.0.0.1", &["1.2.3.4"]), "1.2.3.4");
        assert_eq!(address("10.0.0.1", &["6.6.6.6, 1.2.3.4, 10.0.0.2"]), "1.2.3.4");
        assert_eq!(address("10.0.0.1", &["6.6.6.6", "1.2.3.4"]), "1.2.3.4");
        assert_eq!(address("10.0.0.1", &["garbage"]), "10.0.0.1");
        assert_eq!(address("::ffff:10.0.0.1", &["2001:db8::1:2:3:4"]), "2001:db8::");
    }
}

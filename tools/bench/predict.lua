-- wrk's script: POST one row. With PAUSE_MS each connection waits before a request, at random from nothing to twice
-- that: connections that waited alike would all come at once. Ends with one line of JSON for bench.py.
wrk.method = "POST"
wrk.body = '{"features":[5.1,3.5,1.4,0.2]}'
wrk.headers["Content-Type"] = "application/json"

local pause = tonumber(os.getenv("PAUSE_MS") or "0")
if pause > 0 then -- its mere presence makes wrk send every request from a timer
  function delay()
    return math.random(0, 2 * pause)
  end
end

function done(summary, latency, _)
  local failed = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout
  io.write(string.format('{"requests":%d,"seconds":%f,"failed":%d,"p50_ms":%f,"p99_ms":%f}\n',
    summary.requests, summary.duration / 1e6, failed,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end

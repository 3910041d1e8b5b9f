-- wrk's script: POST one row. With PAUSE_MS each connection waits between 0 and twice that time before a request; with
-- equal pauses all connections would send at once. The last line of output is JSON for benchmark.py.
wrk.method = "POST"
wrk.body = '{"features":[5.1,3.5,1.4,0.2]}'
wrk.headers["Content-Type"] = "application/json"

local pause = tonumber(os.getenv("PAUSE_MS") or "0")
if pause > 0 then -- the function alone makes wrk send requests from a timer
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

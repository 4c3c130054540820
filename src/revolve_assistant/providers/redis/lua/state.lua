-- ARGV: ids …  Returns 0 (unknown), 1 (queued) or 2 (running) for each.
local heads, out = call('HMGET', HEADS, unpack(ARGV)), {}
for i, id in ipairs(ARGV) do
  out[i] = 0
  if heads[i] then
    local ends = call('ZSCORE', leased_of(read(heads[i])[QUEUE]), id)
    out[i] = ends and tonumber(ends) > now and 2 or 1
  end
end
return out

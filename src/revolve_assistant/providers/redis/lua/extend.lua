-- ARGV: taker, lease, (id, token) …  Who lost a lease is passed over.
local taker, expiry = ARGV[1], now + tonumber(ARGV[2])
spoke(taker)
load_rules()
local ids, queues = {}, {}
for i = 3, #ARGV, 2 do ids[#ids + 1] = ARGV[i] end
local heads = call('HMGET', HEADS, unpack(ids))
for i, id in ipairs(ids) do
  local head = heads[i] and read(heads[i])
  if head and head[TOKEN] == ARGV[2 + 2 * i] and head[TOKEN] ~= '' then
    local name, mine = head[NAME], true
    if rules and rules[name] and rules[name].concurrency then
      local until_ = tonumber(call('ZSCORE', running_of(name), id) or 0)
      mine = until_ > now -- else its place may be somebody else's by now
      if mine then call('ZADD', running_of(name), expiry, id) end
    end
    if mine then
      local of = queues[head[QUEUE]]
      if not of then
        of = {{}, {}}
        queues[head[QUEUE]] = of
      end
      of[1][#of[1] + 1] = expiry
      of[1][#of[1] + 1] = id
      of[2][#of[2] + 1] = {head, id}
    end
  end
end
for queue, of in pairs(queues) do
  if call('ZADD', leased_of(queue), unpack(of[1])) > 0 then -- some had ended, and nobody has taken them since
    for _, each in ipairs(of[2]) do pick(each[1], each[2]) end
  end
end
return 1

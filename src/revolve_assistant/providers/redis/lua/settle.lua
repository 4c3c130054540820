-- ARGV: taker, keep buried for, at most so many buried, count of those done, (id, token) …, then of the others
-- (id, token, "release" or "bury", delay, 1: counted, reason) …  Who lost a lease is passed over.
local taker, keep, cap, count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
spoke(taker)
load_rules()

local freed = {} -- names with room again
local function unlease(queue, ids, heads)
  if call('ZREM', leased_of(queue), unpack(ids)) < #ids then -- the lease ended, and nobody has taken it since
    for i, id in ipairs(ids) do pick(heads[i], id) end
  end
  if rules then
    for i, id in ipairs(ids) do
      local name = heads[i][NAME]
      if rules[name] and rules[name].concurrency then
        call('ZREM', running_of(name), id)
        freed[name] = true
      end
    end
  end
end

if count > 0 then
  local ids, queues = {}, {}
  for i = 1, count do ids[i] = ARGV[3 + 2 * i] end
  local heads = call('HMGET', HEADS, unpack(ids))
  local over = {}
  for i = 1, count do
    local head, id = heads[i] and read(heads[i]), ids[i]
    if head and head[TOKEN] == ARGV[4 + 2 * i] and head[TOKEN] ~= '' then
      local of = queues[head[QUEUE]]
      if not of then
        of = {{}, {}}
        queues[head[QUEUE]] = of
      end
      of[1][#of[1] + 1] = id
      of[2][#of[2] + 1] = head
      over[#over + 1] = id
      if head[KEY] ~= '' then free_key(head, id) end
    end
  end
  if #over > 0 then
    for queue, of in pairs(queues) do unlease(queue, of[1], of[2]) end
    call('HDEL', HEADS, unpack(over))
    call('HDEL', BODIES, unpack(over))
  end
end

local touched, buried = {}, false
for at = 5 + 2 * count, #ARGV, 6 do
  local id, token, kind, delay = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local record = call('HGET', HEADS, id)
  local head = record and read(record)
  if head and head[TOKEN] == token and token ~= '' then
    local queue = head[QUEUE]
    unlease(queue, {id}, {head})
    head[TOKEN] = ''
    if kind == 'bury' then
      local body = call('HGET', BODIES, id) or ''
      call('HDEL', HEADS, id)
      call('HDEL', BODIES, id)
      free_key(head, id)
      call('HSET', BURIED_HEADS, id, pack({queue, head[DELIVERIES], ARGV[at + 5], head[NAME], now, #body}))
      call('HSET', BURIED_BODIES, id, body)
      call('ZADD', BURIED, now, id)
      call('ZADD', buried_of(queue), now, id)
      call('PEXPIRE', buried_of(queue), keep)
      call('SADD', QUEUES, queue)
      call('INCRBY', BURIED_SIZE, #body)
      buried = true
    else
      if ARGV[at + 4] == '0' then head[DELIVERIES] = head[DELIVERIES] - 1 end
      head[SCORE] = head[SCORE] - head[SCORE] % BAND + next_stamp() + math.floor(delay * 100)
      call('HSET', HEADS, id, pack(head))
      if delay > 0 then
        local due = now + delay
        local first = tonumber(call('ZRANGE', delayed_of(queue), 0, 0, 'WITHSCORES')[2] or math.huge)
        call('ZADD', delayed_of(queue), due, id)
        if due < first then rouse(queue) end
      else
        call('ZADD', ready_of(queue), head[SCORE], id)
        touched[queue] = true
      end
    end
  end
end
keep_stamp()

if buried then
  unbury_old(keep, cap)
  for _, key in ipairs({BURIED, BURIED_HEADS, BURIED_BODIES, BURIED_SIZE}) do call('PEXPIRE', key, keep) end
end

rooms = {}
for queue in pairs(touched) do serve(queue) end
for name in pairs(freed) do rouse_parks(name) end
return 1

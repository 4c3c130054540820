-- KEYS: channels. ARGV: bytes to give at most, the largest message to give, then for each channel where to begin
-- (incarnation and place; '': at the start). Returns for each: incarnation, place of the first byte, place of the end,
-- and the bytes, perhaps not all and perhaps with a part of a message at the end, but with one whole message at least if
-- there are any; nil: it is not there; 0: it is another one; 1: its next message is too large.
local budget, largest, out = tonumber(ARGV[1]), tonumber(ARGV[2]), {}
for i, key in ipairs(KEYS) do
  local incarnation, base = head_of(key)
  local from = ARGV[i + 2]
  if not incarnation then
    out[i] = false
  elseif from ~= '' and string.sub(from, 1, 8) ~= incarnation then
    out[i] = 0
  else
    local finish = base + call('STRLEN', key) - HEAD
    local at = from == '' and base or unpack('>I6', from, 9)
    at = math.min(math.max(at, base), finish)
    local data = ''
    if at < finish and budget > 0 then
      local first = HEAD + at - base
      local size = 4 + unpack('>I4', call('GETRANGE', key, first, first + 3))
      if size > largest then
        data = nil
      else
        size = math.max(size, math.min(budget, finish - at))
        data = call('GETRANGE', key, first, first + size - 1)
        budget = budget - size
      end
    end
    out[i] = data and incarnation .. pack('>I6I6', at, finish) .. data or 1
  end
end
return out

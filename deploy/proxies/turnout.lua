-- `http-request lua.turnout EXPERIMENT` asks Turnout which variant the unit in `txn.unit` gets, and
-- puts it into `txn.turnout_variant`. Without an answer that stays unset, and nothing fails.

local longest = 200 -- ms; haproxy.cfg has the shorter limits

local function ask(txn, experiment)
  local client = core.httpclient()
  return client:get({
    url = "http://turnout/v1/route/" .. experiment,
    dst = "abns@turnout",
    timeout = longest,
    headers = {
      ["X-Turnout-Unit"] = { txn:get_var("txn.unit") },
      ["X-Turnout-Attributes"] = { txn:get_var("txn.attributes") },
    },
  })
end

core.register_action("turnout", { "http-req" }, function(txn, experiment)
  local went_well, answer = pcall(ask, txn, experiment)
  if not went_well or not answer or answer.status ~= 200 then
    return
  end
  local variant = answer.headers and answer.headers["x-turnout-variant"]
  if variant then
    txn:set_var("txn.turnout_variant", variant[0])
  end
end, 1)

#!/usr/bin/env bash
# botocore 1.34.0 and 1.44.5: what a CloudWatch client sends to an endpoint that it is pointed at.
#
# Guess:      what the service's model says: "protocol": "smithy-rpc-v2-cbor" (1.44.5), and before that "query". So a local service
#             that answers forms with XML serves old clients, and one that answers CBOR the new ones.
# Behaviour:  the model also lists "protocols", and botocore chooses by an order of its own in which json comes before CBOR. The
#             new client sends JSON 1.0 (SageMaker and CloudWatch Logs take 1.1) with the header X-Amz-Target:
#             GraniteServiceVersion20100801.GetMetricStatistics. Nothing is negotiated: XML or CBOR back is a parse error.
# Seen:       "1.34.0: model query, sent application/x-www-form-urlencoded; charset=utf-8, target -";
#             "1.44.5: model smithy-rpc-v2-cbor, sent application/x-amz-json-1.0, target GraniteServiceVersion20100801.GetMetricStatistics".
# Way out:    serve every protocol that the model lists, and choose by the request's headers.
set -eu
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
cat > "$folder/call.py" <<'PY'
import http.server
import threading
from datetime import datetime

import botocore
import botocore.session
from botocore.config import Config

seen = []


class Record(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        seen.append((self.headers["content-type"], self.headers["x-amz-target"] or "-"))
        self.send_response(400)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


server = http.server.HTTPServer(("127.0.0.1", 0), Record)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = botocore.session.get_session().create_client(
    "cloudwatch", "us-west-2", endpoint_url=f"http://127.0.0.1:{server.server_address[1]}", aws_access_key_id="a",
    aws_secret_access_key="b", config=Config(retries={"total_max_attempts": 1}))
when = datetime(2026, 12, 1)
try:
    client.get_metric_statistics(Namespace="/aws/sagemaker/TrainingJobs", MetricName="loss", StartTime=when, EndTime=when,
                                 Period=60, Statistics=["Average"])
except Exception:  # the answer is empty on purpose
    pass
protocol = client.meta.service_model.metadata["protocol"]
print(f"{botocore.__version__}: model {protocol}, sent {seen[0][0]}, target {seen[0][1]}")
PY
for version in 1.34.0 1.44.5; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install -q "botocore==$version"
  "$folder/$version/bin/python" -W ignore "$folder/call.py" | tee -a "$folder/seen"
done
grep -q "1.34.0: model query, sent application/x-www-form-urlencoded" "$folder/seen"
grep -q "1.44.5: model smithy-rpc-v2-cbor, sent application/x-amz-json-1.0, target GraniteServiceVersion20100801.GetMetricStatistics" "$folder/seen"

// AWS SDK for JavaScript v3: objects in parts and by pages, an Autopilot job, its endpoint asked whole and as a stream.
// usage: javascript.mjs ROWS.csv. Prints what it saw.
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import {
  CompleteMultipartUploadCommand, CreateBucketCommand, CreateMultipartUploadCommand, DeleteObjectsCommand,
  GetObjectCommand, ListObjectsV2Command, PutObjectCommand, S3Client, UploadPartCommand, paginateListObjectsV2,
} from "@aws-sdk/client-s3";
import {
  CreateAutoMLJobV2Command, DeleteEndpointCommand, DescribeAutoMLJobV2Command, SageMakerClient,
  waitUntilEndpointInService,
} from "@aws-sdk/client-sagemaker";
import {
  InvokeEndpointCommand, InvokeEndpointWithResponseStreamCommand, SageMakerRuntimeClient,
} from "@aws-sdk/client-sagemaker-runtime";

const bucket = "wire-javascript";
const s3 = new S3Client({ forcePathStyle: true });
const sagemaker = new SageMakerClient({});
const runtime = new SageMakerRuntimeClient({});
const seen = {};

await s3.send(new CreateBucketCommand({ Bucket: bucket, CreateBucketConfiguration: { LocationConstraint: "us-west-2" } }));
const put = await s3.send(
  new PutObjectCommand({ Bucket: bucket, Key: "rows/train.csv", Body: readFileSync(process.argv[2]) }));
seen.checksum = put.ChecksumCRC32;
const large = { Bucket: bucket, Key: "large/parts.bin" };
const { UploadId } = await s3.send(new CreateMultipartUploadCommand(large));
const parts = [Buffer.alloc(5 * 1024 * 1024, "a"), Buffer.from("the end")];
const done = [];
for (const [index, Body] of parts.entries()) {
  const { ETag, ChecksumCRC32 } = await s3.send(
    new UploadPartCommand({ ...large, UploadId, PartNumber: index + 1, Body }));
  done.push({ ETag, ChecksumCRC32, PartNumber: index + 1 });
}
await s3.send(new CompleteMultipartUploadCommand({ ...large, UploadId, MultipartUpload: { Parts: done } }));
const tail = await s3.send(new GetObjectCommand({ ...large, Range: "bytes=-7" }));
seen.tail = await tail.Body.transformToString();
seen.keys = [];
for await (const page of paginateListObjectsV2({ client: s3, pageSize: 1 }, { Bucket: bucket })) {
  seen.keys.push(page.Contents.map((item) => [item.Key, item.Size]));
}

const name = "javascript-one";
await sagemaker.send(new CreateAutoMLJobV2Command({
  AutoMLJobName: name, RoleArn: "arn:aws:iam::123456789012:role/SageMakerExecutionRole",
  AutoMLJobInputDataConfig: [{
    ChannelType: "training", ContentType: "text/csv;header=present",
    DataSource: { S3DataSource: { S3DataType: "S3Prefix", S3Uri: `s3://${bucket}/rows/` } },
  }],
  OutputDataConfig: { S3OutputPath: `s3://${bucket}/out` },
  AutoMLProblemTypeConfig: { TextGenerationJobConfig: {
    BaseModelName: "FlanT5L", TextGenerationHyperParameters: { epochCount: "1", batchSize: "4" } } },
  ModelDeployConfig: { EndpointName: name },
}));
let job;
do {
  await sleep(500);
  job = await sagemaker.send(new DescribeAutoMLJobV2Command({ AutoMLJobName: name }));
} while (job.AutoMLJobStatus === "InProgress");
seen.job = [job.AutoMLJobStatus, job.FailureReason, job.CreationTime instanceof Date];
seen.metrics = job.BestCandidate.CandidateProperties.CandidateMetrics.map((item) => item.StandardMetricName);
await waitUntilEndpointInService(
  { client: sagemaker, maxWaitTime: 300, minDelay: 1, maxDelay: 2 }, { EndpointName: name });
const question = { EndpointName: name, ContentType: "application/json" };
const body = { inputs: "the cat", parameters: { max_new_tokens: 4 } };
const answer = await runtime.send(new InvokeEndpointCommand({ ...question, Body: JSON.stringify(body) }));
seen.answer = JSON.parse(Buffer.from(answer.Body).toString());
const stream = await runtime.send(
  new InvokeEndpointWithResponseStreamCommand({ ...question, Body: JSON.stringify({ ...body, stream: true }) }));
seen.streamed = "";
for await (const event of stream.Body) seen.streamed += Buffer.from(event.PayloadPart.Bytes).toString();
await sagemaker.send(new DeleteEndpointCommand({ EndpointName: name }));
const left = await s3.send(new ListObjectsV2Command({ Bucket: bucket, Prefix: "large/" }));
const gone = await s3.send(new DeleteObjectsCommand(
  { Bucket: bucket, Delete: { Objects: left.Contents.map(({ Key }) => ({ Key })) } }));
seen.deleted = gone.Deleted.map(({ Key }) => Key);
try {
  await s3.send(new GetObjectCommand(large));
} catch (error) {
  seen.missing = [error.name, error.$metadata.httpStatusCode];
}
console.log(JSON.stringify(seen));

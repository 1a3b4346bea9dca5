CREATE TABLE captures (
	id INTEGER NOT NULL,
	endpoint TEXT NOT NULL,
	version INTEGER NOT NULL,
	mode TEXT NOT NULL,
	start DOUBLE NOT NULL,
	"end" DOUBLE NOT NULL,
	rows BIGINT NOT NULL,
	errors BIGINT NOT NULL,
	dropped BIGINT NOT NULL,
	digest TEXT NOT NULL,
	part TEXT,
	CONSTRAINT pk_captures PRIMARY KEY (id),
	CONSTRAINT uq_captures_part UNIQUE (part)
);
CREATE INDEX ix_captures_time ON captures (endpoint, "end", start);
CREATE TABLE counters (
	name TEXT NOT NULL,
	value BIGINT NOT NULL,
	CONSTRAINT pk_counters PRIMARY KEY (name)
);
CREATE TABLE endpoints (
	endpoint TEXT NOT NULL,
	model TEXT NOT NULL,
	generation BIGINT NOT NULL,
	routes TEXT NOT NULL,
	rollout TEXT,
	settings TEXT NOT NULL,
	CONSTRAINT pk_endpoints PRIMARY KEY (endpoint)
);
CREATE INDEX ix_endpoints_model ON endpoints (model);
CREATE TABLE event_head (
	id INTEGER NOT NULL,
	seq BIGINT NOT NULL,
	hash TEXT NOT NULL,
	CONSTRAINT pk_event_head PRIMARY KEY (id)
);
CREATE TABLE events (
	seq INTEGER NOT NULL,
	at DOUBLE NOT NULL,
	kind TEXT NOT NULL,
	subject TEXT NOT NULL,
	actor TEXT NOT NULL,
	data TEXT NOT NULL,
	previous TEXT NOT NULL,
	hash TEXT NOT NULL,
	CONSTRAINT pk_events PRIMARY KEY (seq)
);
CREATE INDEX ix_events_kind ON events (kind, seq);
CREATE INDEX ix_events_subject ON events (subject, seq);
CREATE TABLE experiments (
	id INTEGER NOT NULL,
	name TEXT NOT NULL,
	artifact_location TEXT DEFAULT '' NOT NULL,
	lifecycle_stage TEXT DEFAULT 'active' NOT NULL,
	created_ms BIGINT NOT NULL,
	updated_ms BIGINT NOT NULL,
	CONSTRAINT pk_experiments PRIMARY KEY (id),
	CONSTRAINT uq_experiments_name UNIQUE (name)
);
CREATE TABLE jobs (
	id INTEGER NOT NULL,
	model TEXT NOT NULL,
	kind TEXT NOT NULL,
	payload TEXT NOT NULL,
	state TEXT NOT NULL,
	attempts INTEGER DEFAULT '0' NOT NULL,
	max_attempts INTEGER DEFAULT '3' NOT NULL,
	owner TEXT,
	not_before DOUBLE NOT NULL,
	lease_until DOUBLE,
	created DOUBLE NOT NULL,
	started DOUBLE,
	finished DOUBLE,
	result TEXT,
	error TEXT,
	CONSTRAINT pk_jobs PRIMARY KEY (id)
);
CREATE INDEX ix_jobs_model ON jobs (model, id);
CREATE INDEX ix_jobs_state ON jobs (state, not_before);
CREATE TABLE labels (
	prediction_id TEXT NOT NULL,
	value TEXT NOT NULL,
	time DOUBLE NOT NULL,
	CONSTRAINT pk_labels PRIMARY KEY (prediction_id)
)
 WITHOUT ROWID;
CREATE INDEX ix_labels_time ON labels (time);
CREATE TABLE models (
	id INTEGER NOT NULL,
	name TEXT NOT NULL,
	description TEXT DEFAULT '' NOT NULL,
	created_ms BIGINT NOT NULL,
	updated_ms BIGINT NOT NULL,
	CONSTRAINT pk_models PRIMARY KEY (id),
	CONSTRAINT uq_models_name UNIQUE (name)
);
CREATE TABLE snapshots (
	id INTEGER NOT NULL,
	name TEXT NOT NULL,
	digest TEXT NOT NULL,
	manifest TEXT NOT NULL,
	created DOUBLE NOT NULL,
	rows BIGINT NOT NULL,
	parent TEXT,
	fingerprints TEXT NOT NULL,
	CONSTRAINT pk_snapshots PRIMARY KEY (id)
);
CREATE INDEX ix_snapshots_digest ON snapshots (digest);
CREATE INDEX ix_snapshots_name ON snapshots (name, id);
CREATE TABLE stages (
	"key" TEXT NOT NULL,
	stage TEXT NOT NULL,
	model TEXT NOT NULL,
	result TEXT NOT NULL,
	created DOUBLE NOT NULL,
	CONSTRAINT pk_stages PRIMARY KEY ("key")
);
CREATE INDEX ix_stages_model ON stages (model, stage, created);
CREATE TABLE windows (
	id INTEGER NOT NULL,
	endpoint TEXT NOT NULL,
	model TEXT NOT NULL,
	version INTEGER NOT NULL,
	mode TEXT NOT NULL,
	start DOUBLE NOT NULL,
	"end" DOUBLE NOT NULL,
	rows BIGINT NOT NULL,
	errors BIGINT NOT NULL,
	dropped BIGINT NOT NULL,
	profile TEXT NOT NULL,
	latency TEXT NOT NULL,
	metrics TEXT NOT NULL,
	labels BIGINT NOT NULL,
	CONSTRAINT pk_windows PRIMARY KEY (id),
	CONSTRAINT uq_windows_endpoint_version_mode_start UNIQUE (endpoint, version, mode, start)
);
CREATE INDEX ix_windows_time ON windows (endpoint, "end");
CREATE TABLE aliases (
	model INTEGER NOT NULL,
	alias TEXT NOT NULL,
	version INTEGER NOT NULL,
	CONSTRAINT pk_aliases PRIMARY KEY (model, alias),
	CONSTRAINT fk_aliases_model FOREIGN KEY(model) REFERENCES models (id) ON DELETE CASCADE
)
 WITHOUT ROWID;
CREATE TABLE experiment_tags (
	experiment INTEGER NOT NULL,
	"key" TEXT NOT NULL,
	value TEXT NOT NULL,
	CONSTRAINT pk_experiment_tags PRIMARY KEY (experiment, "key"),
	CONSTRAINT fk_experiment_tags_experiment FOREIGN KEY(experiment) REFERENCES experiments (id) ON DELETE CASCADE
)
 WITHOUT ROWID;
CREATE TABLE findings (
	id INTEGER NOT NULL,
	model TEXT NOT NULL,
	endpoint TEXT NOT NULL,
	version INTEGER NOT NULL,
	kind TEXT NOT NULL,
	at DOUBLE NOT NULL,
	window INTEGER,
	evidence TEXT NOT NULL,
	CONSTRAINT pk_findings PRIMARY KEY (id),
	CONSTRAINT fk_findings_window FOREIGN KEY(window) REFERENCES windows (id)
);
CREATE INDEX ix_findings_model ON findings (model, at);
CREATE TABLE model_tags (
	model INTEGER NOT NULL,
	"key" TEXT NOT NULL,
	value TEXT NOT NULL,
	CONSTRAINT pk_model_tags PRIMARY KEY (model, "key"),
	CONSTRAINT fk_model_tags_model FOREIGN KEY(model) REFERENCES models (id) ON DELETE CASCADE
)
 WITHOUT ROWID;
CREATE TABLE runs (
	id INTEGER NOT NULL,
	run_id TEXT NOT NULL,
	experiment INTEGER NOT NULL,
	name TEXT DEFAULT '' NOT NULL,
	status TEXT DEFAULT 'RUNNING' NOT NULL,
	lifecycle_stage TEXT DEFAULT 'active' NOT NULL,
	user_id TEXT DEFAULT '' NOT NULL,
	source_type TEXT DEFAULT 'LOCAL' NOT NULL,
	source_name TEXT DEFAULT '' NOT NULL,
	source_version TEXT DEFAULT '' NOT NULL,
	entry_point_name TEXT DEFAULT '' NOT NULL,
	artifact_uri TEXT DEFAULT '' NOT NULL,
	start_ms BIGINT NOT NULL,
	end_ms BIGINT,
	deleted_ms BIGINT,
	CONSTRAINT pk_runs PRIMARY KEY (id),
	CONSTRAINT uq_runs_run_id UNIQUE (run_id),
	CONSTRAINT fk_runs_experiment FOREIGN KEY(experiment) REFERENCES experiments (id) ON DELETE CASCADE
);
CREATE INDEX ix_runs_name ON runs (experiment, name);
CREATE INDEX ix_runs_recent ON runs (experiment, lifecycle_stage, start_ms, run_id);
CREATE TABLE version_tags (
	model INTEGER NOT NULL,
	version INTEGER NOT NULL,
	"key" TEXT NOT NULL,
	value TEXT NOT NULL,
	CONSTRAINT pk_version_tags PRIMARY KEY (model, version, "key"),
	CONSTRAINT fk_version_tags_model FOREIGN KEY(model) REFERENCES models (id) ON DELETE CASCADE
)
 WITHOUT ROWID;
CREATE TABLE versions (
	model INTEGER NOT NULL,
	version INTEGER NOT NULL,
	run_id TEXT DEFAULT '' NOT NULL,
	source TEXT DEFAULT '' NOT NULL,
	run_link TEXT DEFAULT '' NOT NULL,
	description TEXT DEFAULT '' NOT NULL,
	user_id TEXT DEFAULT '' NOT NULL,
	stage TEXT DEFAULT 'None' NOT NULL,
	status TEXT DEFAULT 'READY' NOT NULL,
	status_message TEXT DEFAULT '' NOT NULL,
	created_ms BIGINT NOT NULL,
	updated_ms BIGINT NOT NULL,
	package TEXT DEFAULT '' NOT NULL,
	runtime TEXT DEFAULT '' NOT NULL,
	note TEXT DEFAULT '' NOT NULL,
	lineage TEXT DEFAULT '{}' NOT NULL,
	evaluation TEXT DEFAULT '{}' NOT NULL,
	CONSTRAINT pk_versions PRIMARY KEY (model, version),
	CONSTRAINT fk_versions_model FOREIGN KEY(model) REFERENCES models (id) ON DELETE CASCADE
);
CREATE INDEX ix_versions_created ON versions (created_ms);
CREATE INDEX ix_versions_run_id ON versions (run_id);
CREATE TABLE latest_metrics (
	run INTEGER NOT NULL,
	"key" TEXT NOT NULL,
	experiment BIGINT NOT NULL,
	value DOUBLE,
	timestamp_ms BIGINT NOT NULL,
	step BIGINT NOT NULL,
	CONSTRAINT pk_latest_metrics PRIMARY KEY (run, "key"),
	CONSTRAINT fk_latest_metrics_run FOREIGN KEY(run) REFERENCES runs (id) ON DELETE CASCADE
)
 WITHOUT ROWID;
CREATE INDEX ix_latest_metrics_search ON latest_metrics (experiment, "key", value, run);
CREATE TABLE metrics (
	run INTEGER NOT NULL,
	"key" TEXT NOT NULL,
	timestamp_ms BIGINT NOT NULL,
	step BIGINT NOT NULL,
	value DOUBLE NOT NULL,
	is_nan SMALLINT DEFAULT '0' NOT NULL,
	CONSTRAINT pk_metrics PRIMARY KEY (run, "key", timestamp_ms, step, value, is_nan),
	CONSTRAINT fk_metrics_run FOREIGN KEY(run) REFERENCES runs (id) ON DELETE CASCADE
)
 WITHOUT ROWID;
CREATE TABLE params (
	run INTEGER NOT NULL,
	"key" TEXT NOT NULL,
	value TEXT NOT NULL,
	experiment BIGINT NOT NULL,
	CONSTRAINT pk_params PRIMARY KEY (run, "key"),
	CONSTRAINT fk_params_run FOREIGN KEY(run) REFERENCES runs (id) ON DELETE CASCADE
)
 WITHOUT ROWID;
CREATE INDEX ix_params_search ON params (experiment, "key", substr(value, 1, 200), run);
CREATE TABLE run_artifacts (
	run INTEGER NOT NULL,
	path TEXT NOT NULL,
	digest TEXT NOT NULL,
	size BIGINT NOT NULL,
	CONSTRAINT pk_run_artifacts PRIMARY KEY (run, path),
	CONSTRAINT fk_run_artifacts_run FOREIGN KEY(run) REFERENCES runs (id) ON DELETE CASCADE
)
 WITHOUT ROWID;
CREATE TABLE tags (
	run INTEGER NOT NULL,
	"key" TEXT NOT NULL,
	value TEXT NOT NULL,
	experiment BIGINT NOT NULL,
	CONSTRAINT pk_tags PRIMARY KEY (run, "key"),
	CONSTRAINT fk_tags_run FOREIGN KEY(run) REFERENCES runs (id) ON DELETE CASCADE
)
 WITHOUT ROWID;
CREATE INDEX ix_tags_search ON tags (experiment, "key", substr(value, 1, 200), run);

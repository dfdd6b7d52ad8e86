"""What ends a negation, where doubt stands, how findings are spelt: sentences of each kind and what they say."""

import pytest
from sentences import codes_of, codes_read

SENTENCES = {
    "unlikely speaks forward or back": """
        Pneumothorax is unlikely to be present. || pneumothorax-
        The consolidation is unlikely to reflect pneumonia. || consolidation+ pneumonia-
        There is unlikely to be a fracture. || fracture-
        Findings are unlikely to represent edema. || edema-
        Pneumonia is thought unlikely. || pneumonia-
        An infectious process is felt to be unlikely. || pneumonia-
        Unlikely pneumonia. || pneumonia-
        Pneumonia seems unlikely. || pneumonia-
        The opacities are not likely to represent pneumonia. || opacity+ pneumonia-
        The appearance speaks against edema. || edema-
        Absence of fever argues against pneumonia. || pneumonia-
        The nodule is unlikely malignant. || lesion+
    """,
    "what ends a negation": """
        No pneumothorax following thoracentesis, small residual effusion. || pneumothorax- effusion+
        No pneumothorax status post right chest tube placement. || pneumothorax- device+
        No pneumothorax with the left chest tube on suction. || pneumothorax- device+
        No effusion and new left upper lobe opacity. || effusion- opacity+
        No pneumothorax, a small left effusion. || pneumothorax- effusion+
        No edema, mild cardiomegaly. || edema- heart+
        No pneumothorax, ET tube in standard position. || pneumothorax- device+
        No fracture, pacemaker leads intact. || fracture- device+
        No consolidation, effusion, pneumothorax. || consolidation- effusion- pneumothorax-
        No consolidation, effusion, small pneumothorax or edema. || consolidation- effusion- pneumothorax- edema-
        No complication after central line placement. || device+
        No pneumothorax post removal of the chest tube. || pneumothorax- device-
        Interval removal of the endotracheal tube and placement of a tracheostomy. || device+
        Removal of the Swan-Ganz catheter, IJ sheath, and nasogastric tube. || device-
        No significant interval change in the moderate right effusion. || effusion+
        No evidence of change in the pneumothorax. || pneumothorax+
        No worsening of the edema. || edema+
        No change in lines and tubes. || device+
        No large effusion or pneumothorax. || effusion- pneumothorax-
        No left effusion and no right effusion. || effusion-
        No acute, displaced fracture. || fracture-
        No pneumothorax despite multiple rib fractures. || pneumothorax- fracture+
        No edema in the setting of chronic cardiomegaly. || edema- heart+
        No pneumonia, only atelectasis. || pneumonia- atelectasis+
        No effusion, but mild edema. || effusion- edema+
    """,
    "a verb of its own ends the list before it": """
        Effusions persist, pneumothorax has resolved. || effusion+ pneumothorax-
        Atelectasis continues, the effusion has cleared. || atelectasis+ effusion-
        The effusion has increased and the pneumothorax has resolved. || effusion+ pneumothorax-
        Mild cardiomegaly is unchanged, edema is no longer seen. || heart+ edema-
        Small effusion, and pneumothorax is not seen. || effusion+ pneumothorax-
        Opacity improves, effusion is not seen. || opacity+ effusion-
        Edema and effusions have cleared. || edema- effusion-
        Atelectasis, effusion, and edema have all resolved. || atelectasis- effusion- edema-
        Consolidation has developed, edema resolved. || consolidation+ edema-
        Resolved pneumothorax. || pneumothorax-
        Pneumothorax resolved, effusion unchanged. || pneumothorax- effusion+
        The pneumothorax has nearly resolved. || pneumothorax+
        Chest tube has been removed, small pneumothorax. || device- pneumothorax+
    """,
    "doubt after the finding, and around it": """
        Trace, if any, effusion. || effusion?
        Pleural effusion, if any, is small. || effusion?
        If present, the effusion is small. || effusion?
        There is at most a trace effusion. || effusion?
        Pneumonia remains in the differential. || pneumonia?
        Aspiration and pneumonia are in the differential. || pneumonia?
        Atelectasis is favored. || atelectasis?
        Atelectasis more likely than pneumonia. || atelectasis? pneumonia?
        Atelectasis is favored over pneumonia. || atelectasis? pneumonia?
        Favor atelectasis. || atelectasis?
        Pneumonia not excluded. || pneumonia?
        Pneumonia is not entirely excluded. || pneumonia?
        Edema is questioned. || edema?
        A nodule is suspected. || lesion?
        Infection might have a similar appearance. || pneumonia?
        Atelectasis may account for this. || atelectasis?
        Pneumonia should be considered. || pneumonia?
        Pneumonia is a possibility. || pneumonia?
        Infection is of concern. || pneumonia?
        Pneumonia? || pneumonia?
        Pneumothorax cannot be ruled out. || pneumothorax?
        There is concern for pneumonia. || pneumonia?
        There is a question of a nodule. || lesion?
        Heart size is normal to mildly enlarged. || heart?
        Nothing to suggest edema. || edema-
        No convincing evidence for edema. || edema-
    """,
    "shadows, and what is not calcified": """
        Noncalcified nodule at the left apex. || lesion+
        Non calcified nodules in both lungs. || lesion+
        The nodule is not calcified. || lesion+
        The nodules are densely calcified. ||
        The nodule is probably calcified. || lesion+
        Abnormal configuration of the heart. ||
        The mediastinum is abnormal. || mediastinum+
        The nodule represents a nipple shadow. ||
        Bilateral nipple shadows. ||
        Nodular density at the left base, likely a nipple shadow. ||
        Rounded opacities are likely nipple shadows. || opacity+
        Nodule versus nipple shadow. || lesion?
        Skin fold mimics a pneumothorax. ||
    """,
    "dashes of any kind, and hidden characters": """
        No pneumothorax—small effusion. || pneumothorax- effusion+
        No pneumothorax–small effusion. || pneumothorax- effusion+
        No pneumothorax - small effusion. || pneumothorax- effusion+
        Effusion — none. || effusion-
        Edema: none. || edema-
        Pneumo\u00adthorax is absent. || pneumothorax-
        Pleural eﬀusion. || effusion+
        Right\u2011sided effusion. || effusion+
    """,
    "abbreviations, other spellings, misspellings": """
        RLL PNA. || pneumonia+
        No PTX. || pneumothorax-
        Pulmonary oedema. || edema+
        Haemopneumothorax. || effusion+ pneumothorax+
        Bilateral effussions. || effusion+
        Right pneumothroax. || pneumothorax+
        Cardiomegally. || heart+
        Left basilar consoldation. || consolidation+
        Rib fx. || fracture+
        ETT in place. || device+
        NGT tip in the stomach. || device+
        Engorged pulmonary vessels. || edema+
        Right lower lobe infiltarte. || opacity+
        Bronchopneumonia. || pneumonia+
    """,
    "several statements in one sentence": """
        There isn't a pneumothorax. || pneumothorax-
        The effusion hasn't resolved. || effusion+
        We can't exclude pneumonia. || pneumonia?
        Lungs: no consolidation; Pleura: small effusion; Heart: normal. || consolidation- effusion+ heart-
        The heart is enlarged without edema. || heart+ edema-
        Cardiac silhouette enlarged, lungs clear. || heart+
        Cardiothoracic ratio is increased. || heart+
        The effusion is no longer large. || effusion+
        No focal consolidation is seen, small effusion is noted. || consolidation- effusion+
        No effusion or pneumothorax is identified, and heart size is normal. || effusion- pneumothorax- heart-
        Lungs clear without effusion, unchanged cardiomegaly. || effusion- heart+
        Previously seen effusion is not visualized. || effusion-
        Pneumothorax is not definitely seen. || pneumothorax-
        Free of effusion, with a right-sided port. || effusion- device+
        Neither pneumothorax nor effusion; stable pacemaker. || pneumothorax- effusion- device+
        No evidence of pneumothorax in this patient with rib fractures. || pneumothorax- fracture+
        No new opacity. || opacity-
        No infiltrate, there is a nodule. || opacity- lesion+
        No longer any effusion. || effusion-
        Without effusion or pneumothorax. || effusion- pneumothorax-
        Nil effusion. || effusion-
        Effusion absent, pneumothorax present. || effusion- pneumothorax+
        Atelectasis with no effusion. || atelectasis+ effusion-
        Support lines in place without pneumothorax. || device+ pneumothorax-
    """,
    "more of all kinds": """
        Pneumothorax is not seen; however, effusion persists. || pneumothorax- effusion+
        There has been interval development of a left effusion. || effusion+
        The previously noted pneumothorax has decreased, effusion is unchanged. || pneumothorax+ effusion+
        No pneumothorax. Tubes and lines as above. || pneumothorax- device+
        Without evidence for pneumonia, the lungs show mild edema. || pneumonia- edema+
        No airspace consolidation to suggest pneumonia, stable cardiomegaly. || consolidation- pneumonia- heart+
        Suspicion for pneumonia is low. || pneumonia?
        Low suspicion for pneumonia. || pneumonia?
        Not consistent with pneumonia. || pneumonia-
        The opacity is not typical of pneumonia. || opacity+ pneumonia-
        Less suggestive of pneumonia. || pneumonia?
        No pneumothorax is identified, although evaluation is limited. || pneumothorax-
        Cannot rule out a small effusion. || effusion?
        Equivocal for pneumonia. || pneumonia?
        An early infiltrate cannot be completely excluded. || opacity?
        Effusion is doubtful. || effusion?
        This may be atelectasis or early pneumonia. || atelectasis? pneumonia?
        Hazy opacity, infection versus edema. || opacity+ pneumonia? edema?
        Left basilar opacity compatible with atelectasis; pneumonia less likely. || opacity+ atelectasis+ pneumonia?
        Pneumonia is less likely. || pneumonia?
        More likely atelectasis than pneumonia. || atelectasis? pneumonia?
        No overt edema or frank consolidation. || edema- consolidation-
        No pleural effusions bilaterally, no pneumothorax. || effusion- pneumothorax-
        No obvious fracture, dislocation or lesion. || fracture-
        Clear of consolidation and effusion. || consolidation- effusion-
        The right pneumothorax is not as large as before. || pneumothorax+
        No appreciable pneumothorax remains. || pneumothorax-
        No residual pneumothorax. || pneumothorax-
        Pneumothorax no longer evident. || pneumothorax-
        Right effusion has not changed. || effusion+
        Edema has not improved. || edema+
        The chest tube is unchanged with no pneumothorax. || device+ pneumothorax-
        Chest tube removed without pneumothorax. || device- pneumothorax-
        Right IJ line removed, left PICC remains. || device+
        The ET tube has been removed and the NG tube remains. || device+
        Absent pneumothorax. || pneumothorax-
        No signs of CHF, moderate cardiomegaly. || edema- heart+
        No mass, nodule, or infiltrate; calcified granuloma. || lesion- opacity-
        No rib fracture, right-sided pneumothorax. || fracture- pneumothorax+
        No pneumothorax or effusion and stable bibasilar atelectasis. || pneumothorax- effusion- atelectasis+
        No evidence of acute infection, chronic scarring at the bases. || pneumonia- opacity+
        Negative for pneumothorax, positive for effusion. || pneumothorax- effusion+
        No effusion on the left, moderate effusion on the right. || effusion+
        No pneumothorax (small effusion). || pneumothorax- effusion+
        No pneumothorax: small effusion. || pneumothorax- effusion+
        Edema, effusion: none. || edema- effusion-
        No edema/effusion. || edema- effusion-
        Suggestion of a small effusion. || effusion?
        The findings suggest edema. || edema?
        Findings suggestive of pneumonia. || pneumonia?
        Findings most compatible with edema. || edema+
        Consolidation worrisome for pneumonia. || consolidation+ pneumonia?
        There might be a small pneumothorax. || pneumothorax?
        Pneumonia could be present. || pneumonia?
        There is a possible nodule. || lesion?
        Heart is not enlarged, no effusion. || heart- effusion-
        Mediastinum is not widened. || mediastinum-
        The cardiac silhouette is enlarged, but unchanged. || heart+
        No pericardial or pleural effusion. || effusion-
        No pleural or pericardial effusion. || effusion-
        Status post removal of left chest tube, no pneumothorax. || device- pneumothorax-
        After chest tube removal there is no pneumothorax. || device- pneumothorax-
        Tube placement without pneumothorax. || device+ pneumothorax-
        A pneumothorax has not developed. || pneumothorax-
        Development of pneumothorax. || pneumothorax+
        No development of pneumothorax. || pneumothorax-
        No cause for pneumothorax. || pneumothorax-
        Not certain if this is pneumonia. || pneumonia?
        Pneumonia is not ruled out. || pneumonia?
        Pneumonia vs atelectasis. || pneumonia? atelectasis?
        No opacity that could represent pneumonia. || opacity- pneumonia-
        Opacity that could represent pneumonia. || opacity+ pneumonia?
        CHF has resolved. || edema-
        Interval clearing of the infiltrate. || opacity-
        Effusion gone. || effusion-
        Heart failure is unlikely. || edema-
        Pulmonary edema is excluded. || edema-
        No pleural effusion, heart size normal. || effusion- heart-
    """,
    "what only a projection explains, lungs that re-expand, what may be occult, doubt before a comma": """
        There is blunting of the right costophrenic sulcus compatible with a small pleural effusion. || effusion+
        The cardiomediastinal silhouette is stable in size and contour. || mediastinum?
        The cardiac silhouette is upper limits of normal in size. || heart-
        No acute osseous abnormality. ||
        Previously seen right apical pneumothorax has resolved. || pneumothorax-
        Right lung has re-expanded following chest tube placement. || device+
        The left lung has fully re-expanded, with no residual pneumothorax. || pneumothorax-
        Re-expansion of the right lung with a tiny residual apical pneumothorax. || pneumothorax+
        The previously noted pneumothorax has re-expanded. || pneumothorax-
        The lung has reexpanded and the pneumothorax is no longer evident. || pneumothorax-
        Enlargement of the cardiopericardial silhouette. || heart+
        The cardiopericardial silhouette is within normal limits. || heart-
        Cardiopericardial silhouette is unchanged. || heart?
        Cardiomediastinal silhouette is mildly enlarged, likely accentuated by technique. || mediastinum+
        Apparent mediastinal widening is likely due to patient rotation. || mediastinum?
        Mediastinal prominence may be projectional. || mediastinum?
        The heart appears enlarged, which may be related to AP technique. || heart?
        Apparent cardiomegaly may be due to low lung volumes. || heart?
        The opacity may be due to pneumonia. || opacity+ pneumonia?
        The effusion may be due to heart failure. || effusion+ edema? heart?
        Widening of the mediastinum could be secondary to supine positioning. || mediastinum?
        The apparent nodule may be artifactual. || lesion?
        Left base opacity may represent overlying soft tissue. || opacity+
        Probable small left effusion, definite cardiomegaly. || effusion? heart+
        Possible left lower lobe pneumonia, cardiomegaly, and pacemaker. || pneumonia? heart+ device+
        Possible atelectasis, definite effusion. || atelectasis? effusion+
        Questionable nodule in the right apex, emphysema, cardiomegaly. || lesion? heart+
        Possible atelectasis, pneumonia, or aspiration. || atelectasis? pneumonia?
        Cannot exclude small effusion, ETT in good position. || effusion? device+
        May represent atelectasis, aspiration, or infection. || atelectasis? pneumonia?
        Post-surgical scarring at the left base. || opacity+
        Postsurgical scarring in the right upper lobe. || opacity+
        Post-operative pleural thickening. || pleura+
        No pneumothorax post-thoracentesis. || pneumothorax-
        Small fractures may be occult on this study. ||
        Nondisplaced rib fracture may be radiographically occult. ||
        A subtle fracture may be missed. ||
        Small effusions could be missed on supine films. ||
        Rib fractures may be inapparent on radiographs. ||
        An occult fracture is not excluded. || fracture?
        No rib fracture is identified, but an occult fracture may be present. || fracture?
    """,
    "telegrams": """
        CXR: ETT 3 cm above carina. NGT in stomach. R IJ CVL in SVC. No PTX. || device+ pneumothorax-
        Lungs clear. Heart normal. No effusions/PTX. || heart- effusion- pneumothorax-
        LLL consolidation c/w PNA. Small L effusion. || consolidation+ pneumonia+ effusion+
        Mild CMG. No CHF. || heart+ edema-
        Stable bibasilar atx. || atelectasis+
        B/L pleural effusions R>L. || effusion+
        ? RLL infiltrate. || opacity?
        No cardiomegaly/CHF. || heart- edema-
        Neg for PTX. || pneumothorax-
        Heart sz nl, lungs clr. || heart-
        Trace R effusion, ? early CHF. || effusion+ edema? heart?
        S/p CABG. Pacer leads intact. No failure. || device+ edema-
        w/o effusion or ptx. || effusion- pneumothorax-
        Interstitial edema improved; effusions persist. || edema+ effusion+
        Consolidation RUL ?mass. || consolidation+ lesion?
    """,
    "as they write in Britain": """
        The heart is not enlarged. Lungs and pleural spaces are clear. || heart-
        Cardiothoracic ratio is at the upper limit of normal. || heart-
        CTR 0.55. ||
        The heart size is difficult to assess on this AP projection. ||
        No focal lung lesion seen. || lesion-
        No focal lung or pleural abnormality. ||
        Patchy air space shadowing in the left mid zone in keeping with infection. || opacity+ pneumonia+
        There is a left sided pneumothorax with a 3 cm rim of air at the apex. || pneumothorax+
        Appearances are those of pulmonary oedema. || edema+
        No evidence of active tuberculosis or collapse. || atelectasis-
        Bilateral hilar enlargement, likely vascular. ||
        Right basal collapse/consolidation. || atelectasis? consolidation?
        A nasogastric tube is seen with its tip projected below the left hemidiaphragm. Safe to use. || device+
        The PICC line has been withdrawn and now lies in the SVC. || device+
        Bulky left hilum raises the possibility of underlying malignancy. || lesion?
        The appearances are not those of pneumonia. || pneumonia-
        The patchy consolidation has cleared; residual scarring only. || consolidation- opacity+
        Normal heart and mediastinum. || heart- mediastinum-
        Normal cardiac and mediastinal contours; no pleural collection. || heart- mediastinum- effusion-
    """,
    "as they write in India": """
        Both lung fields are clear. Both CP angles are clear. Cardiac size is within normal limits. || heart-
        Cardiac shadow is enlarged in transverse diameter. || heart+
        Cardiac size appears normal. Bony thorax appears normal. || heart-
        Both hila are normal. Mediastinum is central. ||
        Bilateral bronchovascular markings are prominent. || opacity+
        Right sided ICD tube noted in situ. || device+
        Inhomogeneous opacities seen in bilateral lung fields - likely infective etiology. || opacity+ pneumonia+
        No obvious focal parenchymal lesion seen. || lesion-
        No evidence of pleural effusion on either side. || effusion-
        Trachea is central. CT ratio is increased. || heart+
        Patchy consolidation seen in left lower zone; advised clinical correlation for pneumonia. || consolidation+
        Prominent bronchovascular markings seen in both lung fields. || opacity+
    """,
    "as they write in Australia": """
        No pneumothorax or pneumomediastinum. || pneumothorax-
        No features to suggest cardiac failure. || edema-
        Mild cardiomegaly but no features of failure. || heart+ edema-
        Minor blunting of the left costophrenic recess may represent a tiny effusion. || effusion?
    """,
    "more ends of a negation": """
        No consolidation, and the pacemaker is unchanged. || consolidation- device+
        No effusion, 8 mm nodule in the right apex. || effusion- lesion+
        No effusion nor pneumothorax; the lines are unchanged. || effusion- pneumothorax- device+
        No focal consolidation with mild interstitial edema. || consolidation- edema+
        No effusion or pneumothorax, cardiomegaly is again noted. || effusion- pneumothorax- heart+
        No pneumothorax, pleural effusion is small on the left. || pneumothorax- effusion+
        No pneumothorax → small effusion. || pneumothorax- effusion+
        No pneumonia, though bronchial wall thickening is present. || pneumonia- opacity+
        No consolidation apart from minor basal atelectasis. || consolidation- atelectasis+
        No other fracture. || fracture-
        No other abnormality besides a small effusion. || effusion+
        No interval change in left effusion, no pneumothorax. || effusion+ pneumothorax-
        No significant change in cardiomegaly or edema. || heart+ edema+
        Without pneumothorax status post line placement. || pneumothorax- device+
        There is no evidence of pneumothorax, pleural effusion is moderate. || pneumothorax- effusion+
        Neither lung shows consolidation. || consolidation-
        Not clearly a mass. || lesion-
    """,
    "more of what is unlikely": """
        The density is unlikely to be a nodule. || lesion-
        Superimposed infection is considered unlikely. || pneumonia-
        Unlikely to be pneumonia. || pneumonia-
        Pneumonia unlikely. || pneumonia-
        Pneumonia is very unlikely given rapid resolution. || pneumonia-
        Edema, less likely infection. || edema+ pneumonia?
        Infection seems less likely. || pneumonia?
        This is highly unlikely to represent metastatic disease or pneumonia. || pneumonia-
    """,
    "more verbs of their own": """
        Cardiomegaly remains, effusions have cleared. || heart+ effusion-
        Bilateral opacities worsen, left effusion has resolved. || opacity+ effusion-
        Pneumothorax enlarges, effusion no longer seen. || pneumothorax+ effusion-
        Edema increases, and the nodule is not seen. || edema+ lesion-
        Atelectasis progresses and effusion has been evacuated. || atelectasis+ effusion-
        Left effusion is larger, right effusion has resolved. || effusion+
        Consolidation is seen, effusion is not. || consolidation+ effusion-
        Heart remains enlarged, edema has cleared. || heart+ edema-
    """,
    "more doubt after the finding": """
        A superimposed pneumonia would be difficult to exclude. || pneumonia?
        Edema, possibly. || edema?
        Small effusion (if any). || effusion?
        Effusion, if present, is small. || effusion?
        Pneumonia is not entirely ruled out. || pneumonia?
        Pneumonia is considered less likely. || pneumonia?
        Lymphangitic spread or edema are considerations. || edema?
        Fracture of the 6th rib is questioned. || fracture?
        Aspiration or pneumonia should be considered. || pneumonia?
        Atelectasis is favoured. || atelectasis?
        Developing infection is difficult to exclude entirely. || pneumonia?
        Nodule suspected in the right mid zone. || lesion?
        A tiny pneumothorax may well be present. || pneumothorax?
        Pneumonia remains a diagnostic consideration. || pneumonia?
    """,
    "more shadows": """
        Nipple shadows overlie the lower lungs. ||
        Bilateral nodular densities compatible with nipple shadows. ||
        Rounded density at the right base may be a nipple shadow. ||
        5 mm nodule likely represents nipple. ||
        Not calcified 4 mm nodule. || lesion+
        Un-calcified nodule in the lingula. || lesion+
        Partially calcified mass in the right hilum. || lesion+
        Calcified lingular nodule. ||
        Calcified and noncalcified nodules. || lesion+
    """,
    "more abbreviations and misspellings": """
        Cardiomegly. || heart+
        Pleural efusion. || effusion+
        Pnuemothorax on the right. || pneumothorax+
        Mild pulmonary edmea. || edema+
        Pulmonary congestoin. || edema+
        Bilat infiltrates. || opacity+
        Pneumothorax: no. Effusion: small. Consolidation: RLL. || pneumothorax- effusion+ consolidation+
        No ptx or effusion. || pneumothorax- effusion-
        PPM in situ. || device+
        AICD noted. || device+
        Tracheostomy in satisfactory position. || device+
        CVC tip at the cavoatrial junction. || device+
        GGO in the left base. || opacity+
        PICC tip in the SVC. || device+
        Pleural effusoins. || effusion+
        Conslidation. || consolidation+
        Nodulle. || lesion+
        Fx of the left clavicle. || fracture+
        LLL collapse. || atelectasis+
        Bibasilar subsegmental atelectases. || atelectasis+
    """,
    "more hidden characters": """
        No pneumothorax − moderate right effusion. || pneumothorax- effusion+
        ｐｎｅｕｍｏｎｉａ in the left lung. || pneumonia+
        No\u00a0pneumothorax. || pneumothorax-
        Pleural\u2011based mass. || lesion+
        Left eﬀusion\u2014no pneumothorax. || effusion+ pneumothorax-
        “Opacity” at the left base. || opacity+
        • No effusion • Small nodule || effusion- lesion+
    """,
    "marks of de-identification": """
        Since [**2010-1-1**], the effusion has increased. || effusion+
        No [**Hospital1**] of pneumothorax. || pneumothorax-
        There is a ___ pneumothorax. || pneumothorax+
        Dr. [NAME] was informed of the pneumothorax. || pneumothorax+
        No _ _ pneumothorax. || pneumothorax-
        The effusion was discussed with Dr. <unk>. || effusion+
    """,
    "short statements": """
        Edema is unlikely to be present. || edema-
        It is very unlikely that there is a fracture. || fracture-
        The finding is unlikely to represent a nodule. || lesion-
        Unlikely to represent pneumothorax. || pneumothorax-
        Consolidation is not likely. || consolidation-
        Pneumonia is doubtful. || pneumonia?
        The nodule is unlikely to be clinically significant. || lesion+
        The appearance argues against a pneumothorax. || pneumothorax-
        Edema is much less likely. || edema?
        No pneumothorax s/p chest tube removal. || pneumothorax- device-
        No pneumothorax post line placement. || pneumothorax- device+
        No pneumothorax, right IJ catheter in good position. || pneumothorax- device+
        No effusion, a 2 cm mass in the left lung. || effusion- lesion+
        No edema and new right basilar opacity. || edema- opacity+
        No focal consolidation, bibasilar atelectasis. || consolidation- atelectasis+
        No complications from line insertion. || device+
        No evidence of complication after chest tube insertion. || device+
        No effusion with stable cardiomegaly. || effusion- heart+
        No consolidation, large effusion, or pneumothorax. || consolidation- effusion- pneumothorax-
        No interval change in the right pneumothorax. || pneumothorax+
        Removal of the endotracheal tube with new left lower lobe atelectasis. || device- atelectasis+
        Withdrawal of the ET tube; the NG tube remains. || device+
        Effusions continue, edema has resolved. || effusion+ edema-
        Opacities improve, pneumothorax has resolved. || opacity+ pneumothorax-
        Cardiomegaly, edema; pneumothorax has resolved. || heart+ edema+ pneumothorax-
        Consolidation and effusion have cleared. || consolidation- effusion-
        The pneumothorax has increased, the effusion has resolved. || pneumothorax+ effusion-
        Atelectasis worsens, effusion has resolved. || atelectasis+ effusion-
        Tiny pneumothorax, if any. || pneumothorax?
        Little, if any, edema. || edema?
        Edema is in the differential. || edema?
        The differential includes edema. || edema?
        Pneumonia could look like this. || pneumonia?
        A small effusion is favored. || effusion?
        Pneumonia is favored. || pneumonia?
        Pneumothorax not excluded. || pneumothorax?
        Nothing suggests pneumonia. || pneumonia-
        There is no suggestion of edema. || edema-
        The heart is borderline to mildly enlarged. || heart?
        The heart is normal or mildly enlarged. || heart?
        Pneumonia is not out of the question. || pneumonia?
        Fracture is hard to exclude. || fracture?
        Nodular opacity is a nipple shadow. || opacity+
        Bilateral nodules are likely nipple shadows. ||
        The nodule is partly calcified. || lesion+
        The nodule has calcified. ||
        Noncalcified pulmonary nodules. || lesion+
        No non-calcified nodule. || lesion-
        No pneumothorax — small left effusion. || pneumothorax- effusion+
        No effusion―cardiomegaly. || effusion- heart+
        Effusion – none. || effusion-
        Right pleural eﬀusion. || effusion+
        Inﬁltrates in both lungs. || opacity+
        Air‐space opacity. || opacity+
        No effusion; no pneumothorax. || effusion- pneumothorax-
        Pneumothorax -- none. || pneumothorax-
        R PTX. || pneumothorax+
        L pleural effusion, no PTX. || effusion+ pneumothorax-
        Haemothorax. || effusion+
        Ground glass opacities. || opacity+
        Bilateral oedema. || edema+
        Cardiomegely. || heart+
        Pnumonia. || pneumonia+
        Pleural efussion. || effusion+
        Atelactasis. || atelectasis+
        Consilidation in the RUL. || consolidation+
        Rib fracure. || fracture+
        Opacitiy. || opacity+
        Pulmonary venous congestion. || edema+
        Vascular engorgement without edema. || edema+
        Pneumothroax is absent. || pneumothorax-
        Effusion: none. Pneumothorax: small left apical. || effusion- pneumothorax+
        Pneumonia: unlikely. || pneumonia-
        Edema: possible. || edema?
        Cardiomegaly: yes. || heart+
        Fracture: not seen. || fracture-
        The consolidation seen on the prior radiograph is not visible. || consolidation-
        The effusion is no larger. || effusion+
        Pneumothorax is no bigger than yesterday. || pneumothorax+
        No effusion on the left, moderate effusion on the right. || effusion+
        Mild ___ of the right heart. ||
        Unable to rule out fracture. || fracture?
        The mediastinum is ___. ||
        Pneumothorax: absent. || pneumothorax-
    """,
}
ROWS = [
    pytest.param(*line.strip().split(" ||"), id=line.strip())
    for lines in SENTENCES.values()
    for line in lines.strip().splitlines()
]


@pytest.mark.parametrize(("sentence", "said"), ROWS)
def test_a_sentence_says_its_codes(sentence, said):
    assert codes_read(sentence) == codes_of(said)
